"""Whether a run fits a topology, and how long a step takes at least: one frozen record of numbers.

    plan(config, topology("v5p:4x4x4"), d=768)

Bytes, FLOPs and transfers are those of one device; seconds are of one step.
"""

from dataclasses import dataclass, replace

from jaxsae.config import Config
from jaxsae.distributed.mesh import mesh_shape
from jaxsae.errors import BadInput
from jaxsae.planning import compiler, estimate, language_model, timing
from jaxsae.planning.devices import Topology
from jaxsae.training.config import check_division


@dataclass(frozen=True)
class Plan:
    topology: str
    devices: int
    mesh: tuple[int, int]
    """Devices along `data` and along `latent`."""
    activation: str
    n: int
    d: int
    k: int
    batch_size: int
    fits: bool
    bytes: dict[str, int]
    """parameters, optimizer, ema, other (the rest of the state), gradients, temporaries (all else that a step makes),
    batch, data (buffered activations), lm and lm_work (language_model.py), program; their `total`, and what is
    `available`."""
    temporaries: dict[str, int]
    """Bytes of the largest temporaries by what needs them, from formulas; not all of them exist at once."""
    flops: dict[str, int]
    """select, decode, gradient, optimizer: see scaling/flops.py; auxk_at_1_percent_dead is added to them."""
    seconds: dict[str, float]
    """At least: of the same parts, each at the device's peak, and of the interconnect; `total` is without dead latents,
    which add the two that begin with auxk."""
    tokens_per_second: float
    """At most; the language model that makes the activations is not in it."""
    transfers: tuple[timing.Transfer, ...]
    compiled: dict | None = None
    """What the compiler says of the real step (`compiler.compiled`); None if all is from formulas."""
    d_out: int | None = None
    """Width of a transcoder's output."""


def plan(config: Config, topology: Topology, d: int, lm=None, compile: bool = True, d_out: int | None = None) -> Plan:
    """The plan of one run. With libtpu, and for a TPU, its step is compiled unless `compile` is false.

    `lm` is the config of the language model that it runs, None if it runs none; `d_out` the width of a transcoder's
    output. Raises BadInput for a mesh that does not divide.
    """
    estimated = _estimated(config, topology, _size(config, topology, d, d_out), lm)
    if not (compile and topology.device.kind == "tpu" and compiler.available()):
        return estimated
    return _with(estimated, compiler.compiled(config, d, topology, estimated.mesh, d_out))


def _size(config: Config, topology: Topology, d: int, d_out: int | None) -> estimate.Size:
    if d < 1:
        raise BadInput(f"--d-model is {d}: give the width of the activations, at least 1")
    batch = config.training.batch
    piece = batch.batch_size // batch.micro_batches
    chosen = batch.mesh or mesh_shape(
        topology.count, topology.device.memory, config.sae.n, (d + (d_out or d)) // 2, piece
    )
    data, latent = chosen
    if data < 1 or latent < 1 or data * latent > topology.count:
        raise BadInput(
            f"--mesh {data} {latent} asks for {data * latent} devices: {topology.name} has {topology.count}, "
            f"so give two positive numbers with a product of at most {topology.count}"
        )
    check_division(config.sae, config.training, config.data.context, data, latent)
    return estimate.Size(config.sae, config.training, d, data, latent, d_out)


def _estimated(config: Config, topology: Topology, size: estimate.Size, lm) -> Plan:
    state = estimate.state_bytes(size)
    gradients = state["parameters"]
    temporaries = estimate.temporary_bytes(size, gradients, topology.device.kind)
    batch = 4 * size.b * size.widths
    of_lm = {"lm": 0, "lm_work": 0}
    if lm is not None:
        of_lm = language_model.lm_bytes(config, lm, size.data * size.latent, topology.device.kind)
    parts = {
        **state,
        "gradients": gradients,
        "temporaries": estimate.at_once(temporaries, gradients, size.family.dense),
        "batch": batch,
        "data": config.data.buffer_batches * batch,
        **of_lm,
        "program": 0,
    }
    total, available = sum(parts.values()), int(topology.device.memory)
    steps, auxk = timing.phases(size), timing.auxk_phase(size, dead=0.01)
    moves = timing.transfers(size, gradients)
    between = lambda auxk: sum(timing.transfer_seconds(t, size, topology) for t in moves if t.only_auxk == auxk)
    seconds = {phase.name: timing.phase_seconds(phase, topology) for phase in steps} | {"interconnect": between(False)}
    step, tokens = sum(seconds.values()), config.training.batch.batch_size
    seconds |= {"total": step, "auxk_at_1_percent_dead": timing.phase_seconds(auxk, topology)}
    return Plan(
        topology=topology.name,
        devices=topology.count,
        mesh=(size.data, size.latent),
        activation=config.sae.activation,
        n=config.sae.n,
        d=size.d,
        d_out=size.d_out,
        k=config.sae.k,
        batch_size=tokens,
        fits=total <= available,
        bytes=parts | {"total": total, "available": available},
        temporaries=temporaries,
        flops={phase.name: phase.flops for phase in steps} | {"auxk_at_1_percent_dead": auxk.flops},
        seconds=seconds | {"auxk_interconnect": between(True)},
        tokens_per_second=tokens / step,
        transfers=tuple(moves),
    )


def _with(estimated: Plan, compiled: dict) -> Plan:
    """The plan with the compiler's bytes in place of the estimate's."""
    sizes, parts = compiled["bytes"], estimated.bytes
    if "needed" in sizes:
        # Refused, so that it does not fit even where no number is named.
        placed, program = sizes["needed"] or parts["available"], 0
    else:
        placed = sizes.get("placed") or sizes["arguments"] + sizes["temporaries"] + sizes["outputs"]
        program = sizes["program"]
    total = placed + program + parts["data"] + parts["lm"] + parts["lm_work"]
    held = sum(parts[name] for name in ("parameters", "optimizer", "ema", "other", "gradients", "batch"))
    return replace(
        estimated,
        fits="needed" not in sizes and total <= parts["available"],
        bytes=parts | {"temporaries": max(0, placed - held), "program": program, "total": total},
        compiled=compiled,
    )
