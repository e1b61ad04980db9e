"""What a training step needs on each device, counted from its formulas. Nothing is compiled, no weights are made.

B tokens, D x S the mesh (data x latent), b = B / D tokens and m = n / S latents of a device, p tokens of a piece
(b unless there are micro-batches), d width, c = min(k, m) slots of a device's code. Everything is float32, but for
indices and counters (int32).
"""

import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxsae.planning.devices import Topology
from jaxsae.sae.auxk import KEPT, ROWS
from jaxsae.sae.select import TILE
from jaxsae.training.config import SAEConfig, TrainingConfig, k_aux_of
from jaxsae.training.start import abstract_state

# Arrays [m, d] that lie beside the two of the gradient where most lie at once, as libtpu 0.0.42 compiles the step: what
# loops scatter into is not always updated in place; and more where gradients are summed over `data`.
COPIES, COPIES_TO_SUM = 0, 3


@dataclass(frozen=True)
class Size:
    """The sizes of one step on one mesh."""

    sae: SAEConfig
    training: TrainingConfig
    d: int
    data: int
    latent: int

    @property
    def b(self) -> int:
        return self.training.batch_size // self.data

    @property
    def p(self) -> int:
        return self.b // self.training.micro_batches

    @property
    def m(self) -> int:
        return self.sae.n // self.latent

    @property
    def c(self) -> int:
        return min(self.sae.k, self.m)

    @property
    def slots(self) -> int:
        """Slots up to which a device's loops go: the most that any of its tokens uses."""
        # Of k spread over the shards at random: about five standard deviations above the mean, over 10^5 tokens.
        share = self.sae.k / self.latent
        return self.c if self.latent == 1 else min(self.c, math.ceil(share + 5 * share**0.5))

    @property
    def block(self) -> int:
        """Latents whose pre-activations exist at once (sae/select.py)."""
        rows = max(TILE, self.sae.selection().memory // (4 * self.p) // TILE * TILE)
        return min(self.m, rows)

    @property
    def k_aux(self) -> int:
        """Slots of AuxK, which is part of the program even where it is off."""
        return k_aux_of(self.sae, self.training, self.d)

    @property
    def matrices(self) -> int:
        """Bytes of W_enc, b_enc and W_dec of a device."""
        return 4 * self.m * (2 * self.d + 1)


def state_bytes(size: Size) -> dict[str, int]:
    """Bytes of a device's part of the training state, by what they are for, from the real state's shapes."""
    # Specs do not depend on the mesh's size, so any one device does for a mesh of thousands.
    one = jax.make_mesh((1, 1), ("data", "latent"), devices=jax.devices()[:1])
    state = abstract_state(size.d, one, size.sae, size.training)
    axes = {"data": size.data, "latent": size.latent}

    def local(tree):
        return sum(_local_bytes(leaf, axes) for leaf in jax.tree.leaves(tree))

    parts = {"parameters": local(state.params), "optimizer": local(state.opt), "ema": local(state.ema)}
    return parts | {"other": local(state) - sum(parts.values())}


def _local_bytes(leaf, axes: dict[str, int]) -> int:
    spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
    shape = list(leaf.shape)
    for dim, names in enumerate(spec):
        for name in names if isinstance(names, tuple) else (names,) if names else ():
            shape[dim] = -(-shape[dim] // axes[name])
    # Keys are a pair of uint32, and have a dtype of their own.
    width = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.dtype(leaf.dtype).itemsize
    return math.prod(shape) * width


def temporary_bytes(size: Size) -> dict[str, int]:
    """Bytes of a device's largest temporaries, by what needs them; the compiler shares and pads, so this is rough."""
    b, p, d, c = size.b, size.p, size.d, size.c
    parts = {
        # Pre-activations of a block, and as much again for top-k.
        "selection": 2 * 4 * p * size.block,
        # Candidates of all shards, sorted, with their indices.
        "candidates": 3 * 4 * p * c * size.latent if size.latent > 1 else 0,
        # Values, indices, masks and their gradients.
        "codes": 8 * 4 * b * c,
        # Normalised and centred x, reconstruction, error, gradients.
        "tokens": 6 * 4 * b * d,
        "copies": (COPIES + COPIES_TO_SUM * (size.data > 1)) * 4 * size.m * d,
        # What a piece adds to the gradient.
        "piece": size.matrices if size.training.micro_batches > 1 else 0,
    }
    rows = min(ROWS, size.m)
    kept = min(KEPT, size.sae.selection().memory // (4 * p * rows), -(-size.m // rows))
    others = size.k_aux + rows if kept * rows < size.m else 0
    return parts | {"auxk": 4 * p * (kept * rows + 3 * others + 3 * d) + 4 * size.m}


def at_once(temporaries: dict[str, int], gradients: int) -> int:
    """Bytes of temporaries beside the gradients, of which there are none while latents are chosen."""
    choosing = temporaries["selection"] + temporaries["candidates"]
    always = temporaries["tokens"] + temporaries["codes"]
    later = sum(temporaries.values()) - choosing - always
    return always + max(choosing - gradients, later)


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
    b, m, d, slots = size.b, size.m, size.d, size.slots
    ema = size.training.ema_decay() > 0
    # Reconstruction, gradient of the values; values too, unless the selection knows them exactly.
    gathered = 2 + (size.sae.select != "float32")
    return [
        # W_enc once a piece, x once; pre-activations written and read again by top-k.
        Phase("selection", 2 * b * m * d, 4 * (b // size.p * m * d + b * d + 2 * b * m), size.sae.select),
        # Products over the chosen rows: those above read them, the gradients of W_enc and W_dec also write them.
        Phase("sparse", (gathered + 2) * 2 * b * slots * d, 4 * (gathered + 2 * 2) * b * slots * d),
        # Gradient read; parameters, two moments and EMA read and written. FLOPs: Adam 12, learning rate and update 2,
        # EMA 3 a number; projection 4 and renormalisation 5 for the decoder's half.
        Phase("optimizer", size.matrices // 4 * (14 + 3 * ema + 4), (9 if ema else 7) * size.matrices),
    ]


def auxk_phase(size: Size, dead: float) -> Phase:
    """AuxK where the share `dead` of the latents is dead: five products [b, d] x [d, dead m], float32."""
    rows = dead * size.m if size.training.auxk_weight(size.sae.activation) else 0
    # Pre-activations, reconstruction, and three of the gradient. A threshold of 31 bits looks at [b, dead m] as often.
    return Phase("auxk", int(5 * 2 * size.b * rows * size.d), int(4 * rows * (5 * size.d + 36 * size.b)), "float32")


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


def transfers(size: Size) -> list[Transfer]:
    """The collectives of a step that move more than scalars."""
    b, m, d, S, pieces = size.b, size.m, size.d, size.latent, size.training.micro_batches
    found = []
    if S > 1:
        found += [
            Transfer("top-k candidates", "all-gather", "latent", 4 * b * size.c * S),
            Transfer("reconstruction", "all-reduce", "latent", 4 * b * d),
            Transfer("L0", "all-reduce", "latent", 4 * b),
        ]
    if size.data > 1:
        # Every piece's.
        found += [
            Transfer("gradients", "all-reduce", "data", pieces * size.matrices),
            Transfer("firing counts", "all-reduce", "data", pieces * 4 * m),
        ]
    if S > 1 and size.training.auxk_weight(size.sae.activation):
        found += [
            # One for each bit of the threshold.
            Transfer("AuxK counts", "all-reduce", "latent", 31 * 4 * b, True),
            Transfer("AuxK reconstruction", "all-reduce", "latent", 4 * b * d, True),
        ]
    return found


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
