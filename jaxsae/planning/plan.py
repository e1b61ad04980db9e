"""Whether a run fits a topology, and how long a step takes at least: one frozen record of numbers.

    plan(config, topology("v5p:4x4x4"), d=768)

Bytes, FLOPs and transfers are those of one device; seconds are of one step.
"""

from dataclasses import dataclass, replace

from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.planning import compiler, estimate
from jaxsae.planning.devices import Topology
from jaxsae.setting import check_division, mesh_shape


@dataclass(frozen=True)
class Plan:
    topology: str
    devices: int
    mesh: tuple[int, int]
    """Devices along `data` and along `latent`."""
    n: int
    d: int
    k: int
    batch_size: int
    compiled: bool
    """The compiler's figures of the real step; else counted from formulas."""
    fits: bool
    bytes_parameters: int
    bytes_optimizer: int
    bytes_ema: int
    bytes_other: int
    bytes_gradients: int
    bytes_temporaries: int
    """Everything else that a step makes; compiled: the compiler's total, less the gradients."""
    bytes_batch: int
    bytes_data: int
    """Beside the step: a chunk's activations and the language model's weights."""
    bytes_program: int
    bytes_total: int
    bytes_available: int
    flops_selection: int
    flops_sparse: int
    flops_optimizer: int
    flops_auxk_per_percent_dead: int
    seconds_selection: float
    seconds_sparse: float
    seconds_optimizer: float
    seconds_interconnect: float
    seconds: float
    """At least: each part at the device's peak, then the interconnect; without dead latents."""
    seconds_auxk_per_percent_dead: float
    seconds_auxk_interconnect: float
    """Added in steps in which something is dead."""
    tokens_per_second: float
    """At most."""
    temporaries: dict[str, int]
    """Estimated bytes of the largest, by what needs them."""
    transfers: tuple[estimate.Transfer, ...]
    compiled_seconds: float | None = None
    """That the compiler took."""
    compiled_bytes: dict[str, int] | None = None
    """What memory_analysis() says, and `placed`: arguments and temporaries as they lie in memory."""
    compiled_collectives: tuple[dict, ...] = ()
    compiled_places: tuple[dict, ...] = ()
    """The largest places of temporaries, and the shapes that they hold one after the other."""


def plan(config: Config, topology: Topology, d: int, lm_bytes: int = 0, compile: bool = True, progress=None) -> Plan:
    """The plan of one run. With libtpu, and for a TPU, its step is compiled unless `compile` is false.

    `lm_bytes` is what the language model holds of every device. Raises BadInput for a mesh that does not divide.
    """
    size = _size(config, topology, d)
    found = _estimated(config, topology, size, lm_bytes)
    if not (compile and topology.device.kind == "tpu" and compiler.available()):
        return found
    return _with(found, compiler.compiled(config, d, topology, found.mesh, progress))


def _size(config: Config, topology: Topology, d: int) -> estimate.Size:
    if d < 1:
        raise BadInput(f"--d-model is {d}: give the width of the activations, at least 1")
    piece = config.training.batch_size // config.training.micro_batches
    chosen = config.training.mesh or mesh_shape(topology.count, topology.device.memory, config.sae.n, d, piece)
    data, latent = chosen
    if data < 1 or latent < 1 or data * latent > topology.count:
        raise BadInput(
            f"--mesh {data} {latent} asks for {data * latent} devices: {topology.name} has {topology.count}, "
            f"so give two positive numbers with a product of at most {topology.count}"
        )
    check_division(config, data, latent)
    return estimate.Size(config.sae, config.training, d, data, latent)


def _estimated(config: Config, topology: Topology, size: estimate.Size, lm_bytes: int) -> Plan:
    state, temporaries = estimate.state_bytes(size), estimate.temporary_bytes(size)
    batch, gradients = 4 * size.b * size.d, size.matrices + 4 * size.d
    parts = {
        **state,
        "gradients": gradients,
        "temporaries": estimate.at_once(temporaries, gradients),
        "batch": batch,
        "data": config.data.chunk * batch + lm_bytes,
        "program": 0,
    }
    total = sum(parts.values())
    phases = {phase.name: phase for phase in estimate.phases(size)}
    seconds = {name: estimate.phase_seconds(phase, topology) for name, phase in phases.items()}
    moves = estimate.transfers(size)
    between = lambda auxk: sum(estimate.transfer_seconds(t, size, topology) for t in moves if t.only_auxk == auxk)
    auxk = estimate.auxk_phase(size, dead=0.01)
    step = sum(seconds.values()) + between(False)
    return Plan(
        topology=topology.name,
        devices=topology.count,
        mesh=(size.data, size.latent),
        n=config.sae.n,
        d=size.d,
        k=config.sae.k,
        batch_size=config.training.batch_size,
        compiled=False,
        fits=total <= topology.device.memory,
        **{f"bytes_{name}": value for name, value in parts.items()},
        bytes_total=total,
        bytes_available=int(topology.device.memory),
        **{f"flops_{name}": phase.flops for name, phase in phases.items()},
        flops_auxk_per_percent_dead=auxk.flops,
        **{f"seconds_{name}": value for name, value in seconds.items()},
        seconds_interconnect=between(False),
        seconds=step,
        seconds_auxk_per_percent_dead=estimate.phase_seconds(auxk, topology),
        seconds_auxk_interconnect=between(True),
        tokens_per_second=config.training.batch_size / step,
        temporaries=temporaries,
        transfers=tuple(moves),
    )


def _with(found: Plan, said: dict) -> Plan:
    """The plan with the compiler's bytes in place of the estimate's."""
    of = said["bytes"]
    state = found.bytes_parameters + found.bytes_optimizer + found.bytes_ema + found.bytes_other
    given = state + found.bytes_batch
    if "needed" in of:
        # Refused, so that it does not fit even where no number is named.
        placed, program = of["needed"] or found.bytes_available, 0
    else:
        placed, program = of.get("placed") or of["arguments"] + of["temporaries"] + of["outputs"], of["program"]
    total = placed + program + found.bytes_data
    return replace(
        found,
        compiled=True,
        compiled_seconds=said["seconds"],
        compiled_bytes=of,
        compiled_collectives=tuple(said["collectives"]),
        compiled_places=tuple(said["places"]),
        fits="needed" not in of and total <= found.bytes_available,
        bytes_temporaries=max(0, placed - given - found.bytes_gradients),
        bytes_program=program,
        bytes_total=total,
    )
