"""What a training step computes, reads and moves on each device, and the least time that it takes.

b tokens and m latents of a device, d width, d_out that of a transcoder's output, S shards of the latents; FLOPs are
those of `jaxsae.scaling.flops`.
"""

from dataclasses import dataclass

from jaxsae.planning.devices import Topology
from jaxsae.planning.estimate import Size, n_gathers
from jaxsae.scaling import flops


@dataclass(frozen=True)
class Phase:
    """A part of the step on one device."""

    name: str
    flops: int
    bytes: int
    """Read from and written to memory, at least."""
    products: str | None = None
    """How its dense products are computed; None where there are none and memory alone counts."""


def phases(size: Size) -> list[Phase]:
    """The parts of a step without dead latents. They follow each other."""
    b, m, d, out = size.b, size.m, size.d, size.out
    per_token = flops.autoencoder(size.sae, d, m, size.slots, size.d_out)
    parts = {name: int(b * each) for name, each in per_token.items()}
    skip = parts.pop("skip", 0)
    # Of one dense product: W once a piece, tokens and codes once.
    product = 4 * (b // size.p * m * d + b * d + b * m)
    if size.family.dense:
        steps = [Phase(name, f, f * product // (2 * b * m * d), "float32") for name, f in parts.items()]
    else:
        # Top-k reads the pre-activations again. Products over the chosen rows read them, and where a gradient is added
        # to rows write them too: for the encoder once, for the decoder once a view.
        rows, views = 4 * b * size.slots, flops.n_views(size.sae)
        steps = [
            Phase("select", parts["select"], product + 4 * b * m, size.sae.select_precision),
            Phase("decode", parts["decode"], (views * out + flops.recomputes(size.sae) * d) * rows),
            Phase("gradient", parts["gradient"], (3 * views * out + 2 * d) * rows),
        ]
    if skip:
        steps.append(Phase("skip", skip, 2 * 4 * (b // size.p * d * out + b * (d + out)), "float32"))
    ema = size.training.ema_decay() > 0
    # Gradient read; parameters, two moments and EMA read and written.
    weights = m * (d + out + 1) + (d * out if size.sae.skip else 0)
    update = Phase("optimizer", flops.optimizer(size.sae, d, ema, m, size.d_out), (9 if ema else 7) * 4 * weights)
    return [*steps, update]


def auxk_phase(size: Size, dead: float) -> Phase:
    """AuxK while the share `dead` of the latents is dead."""
    if not size.has_auxk:
        return Phase("auxk", 0, 0)
    # A threshold of 31 bits reads the pre-activations as often.
    total = int(size.b * flops.auxk(size.m, size.d, dead, size.auxk_kept, size.d_out))
    moved = 4 * dead * size.m * (2 * size.d + 3 * size.out + 36 * size.b)
    return Phase("auxk", total, int(moved), "float32")


@dataclass(frozen=True)
class Transfer:
    """A collective of a step."""

    name: str
    kind: str
    axis: str
    bytes: int
    """Of what each device has afterwards."""
    only_auxk: bool = False
    """Moves only while something is dead."""


def transfers(size: Size, gradients: int) -> list[Transfer]:
    """The collectives of a step that move more than scalars; `gradients` are their bytes."""
    b, d, S, pieces = size.b, size.out, size.latent, size.training.batch.micro_batches
    reconstructions = flops.n_views(size.sae) + (size.family.gate_values is not None)
    moves = []
    if S > 1 and n_gathers(size):
        moves.append(Transfer("top-k candidates", "all-gather", "latent", n_gathers(size) * 4 * b * size.c * S))
    if S > 1:
        moves += [
            Transfer("reconstruction", "all-reduce", "latent", reconstructions * 4 * b * d),
            # A count and a sparsity term of each token.
            Transfer("L0", "all-reduce", "latent", (1 + bool(size.family.penalties)) * 4 * b),
        ]
    if size.data > 1:
        # Every piece's.
        moves += [
            Transfer("gradients", "all-reduce", "data", pieces * gradients),
            Transfer("firing counts", "all-reduce", "data", pieces * 4 * size.m),
        ]
    if S > 1 and size.has_auxk:
        moves += [
            # One for each bit of the threshold.
            Transfer("AuxK counts", "all-reduce", "latent", 31 * 4 * b, True),
            Transfer("AuxK reconstruction", "all-reduce", "latent", 4 * b * d, True),
        ]
    return moves


def phase_seconds(phase: Phase, topology: Topology) -> float:
    """The longer of computing and of reading and writing."""
    device = topology.device
    compute = phase.flops / device.matmul[phase.products] if phase.products else 0
    return max(compute, phase.bytes / device.bandwidth)


def transfer_seconds(transfer: Transfer, size: Size, topology: Topology) -> float:
    """Over a ring of the axis's devices, without latency; the slowest link of the ring counts."""
    members = size.latent if transfer.axis == "latent" else size.data
    # `latent` is the mesh's inner axis: its neighbours are on one host while they fit there.
    across = size.latent if transfer.axis == "latent" else size.latent * size.data
    rate = topology.device.link if across <= topology.per_host else topology.device.network
    passes = 2 if transfer.kind == "all-reduce" else 1
    return passes * (members - 1) / members * transfer.bytes / rate
