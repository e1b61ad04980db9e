"""Bytes that a training step needs on each device, counted from its formulas. Nothing is compiled, no weights are made.

B tokens, D x S the mesh (data x latent), b = B / D tokens and m = n / S latents of a device, p tokens of a piece
(b unless there are micro-batches), d width, d_out that of a transcoder's output, c slots of a device's code. Everything
is float32, but for indices and counters (int32).
"""

import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxsae.sae import activation_functions
from jaxsae.sae.activation_functions import ActivationFunction
from jaxsae.sae.auxk import KEPT, ROWS
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.select import TILE
from jaxsae.scaling import flops
from jaxsae.training.config import TrainingConfig
from jaxsae.training.program import make_program

# Arrays [m, d] that lie beside the two of the gradient while gradients are summed over `data`, as libtpu 0.0.42
# compiles the step of a sparse family.
COPIES_TO_SUM = 3


@dataclass(frozen=True)
class Size:
    """The sizes of one step on one mesh."""

    sae: SAEConfig
    training: TrainingConfig
    d: int
    data: int
    latent: int
    d_out: int | None = None

    @property
    def out(self) -> int:
        """Width of the output."""
        return self.d_out or self.d

    @property
    def widths(self) -> int:
        """Of all that is read for a token: of a transcoder, its output is too."""
        return self.d + (self.d_out or 0)

    @property
    def family(self) -> ActivationFunction:
        return activation_functions.get(self.sae.activation)

    @property
    def b(self) -> int:
        return self.training.batch.batch_size // self.data

    @property
    def p(self) -> int:
        return self.b // self.training.batch.micro_batches

    @property
    def m(self) -> int:
        return self.sae.n // self.latent

    @property
    def c(self) -> int:
        return min(flops.n_slots(self.sae), self.m)

    @property
    def slots(self) -> int:
        """Slots up to which a device's loops go: the most that any of its tokens uses."""
        # Of those of a token spread over the shards at random: about five standard deviations above the mean, over 10^5
        # tokens.
        share = flops.n_slots(self.sae) / self.latent
        return self.c if self.latent == 1 else min(self.c, math.ceil(share + 5 * share**0.5))

    @property
    def block(self) -> int:
        """Latents whose pre-activations exist at once while latents are chosen (sae/select.py)."""
        rows = max(TILE, self.sae.selection().memory // (4 * self.p) // TILE * TILE)
        return min(self.m, rows)

    @property
    def auxk_kept(self) -> int:
        """Blocks of dead latents whose pre-activations AuxK keeps (sae/auxk.py)."""
        rows = min(ROWS, self.m)
        return max(1, min(KEPT, self.sae.selection().memory // (4 * self.p * rows), -(-self.m // rows)))

    @property
    def has_auxk(self) -> bool:
        return self.training.auxk_weight(self.sae.activation) > 0


def state_bytes(size: Size) -> dict[str, int]:
    """Bytes of a device's part of the training state, by what they are for, from the real state's shapes."""
    # Specs do not depend on the mesh's size, so any one device does for a mesh of thousands.
    one = jax.make_mesh((1, 1), ("data", "latent"), devices=jax.devices()[:1])
    state = make_program(size.sae, size.training, size.d, d_out=size.d_out).abstract_state(one)
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


def temporary_bytes(size: Size, gradients: int, kind: str) -> dict[str, int]:
    """Bytes of the largest temporaries of a device of that `kind` beside its `gradients`, by what needs them; the
    compiler shares and pads, so this is rough.
    """
    p, d, out, c, dense = size.p, size.d, size.out, size.c, size.family.dense
    rows, kept = min(ROWS, size.m), size.auxk_kept
    others = size.training.k_aux(size.sae.n, d) + rows if kept * rows < size.m else 0
    return {
        # Pre-activations of a block, and as much again for top-k, whose memory was measured on CPUs and TPUs alone.
        "selection": 0 if dense else (1 + (kind == "gpu")) * 4 * p * size.block,
        # Candidates of all shards, sorted, with their indices.
        "candidates": 3 * 4 * p * c * size.latent if n_gathers(size) and size.latent > 1 else 0,
        # Values, indices, masks and their gradients; the support of all pieces is chosen first.
        "codes": 4 * p * size.m * dense_codes(size.sae) if dense else 8 * 4 * size.b * c,
        # Normalised and centred x, reconstruction, error, gradients; one more reconstruction for each further view. A
        # transcoder's y is normalised too.
        "tokens": 4 * size.b * (2 * d + (3 + (size.d_out is not None) + flops.n_views(size.sae)) * out),
        "copies": 0 if dense or size.data == 1 else COPIES_TO_SUM * 4 * size.m * max(d, out),
        # What a piece adds to the gradient.
        "piece": gradients if size.training.batch.micro_batches > 1 else 0,
        # Part of the program even if AuxK is off.
        "auxk": 4 * p * (kept * rows + 3 * others + 3 * out) + 4 * size.m,
    }


def dense_codes(sae: SAEConfig) -> int:
    """Arrays of a number for every token and latent that a dense family holds at once: pre-activations, values and
    their gradient; a gate's values; a threshold and its gradients, from values and penalty; one for each further view.
    """
    family = activation_functions.get(sae.activation)
    return 2 + flops.n_views(sae) + (family.gate_values is not None) + 3 * (family.from_threshold is not None)


def n_gathers(size: Size) -> int:
    """How often the candidates of all shards are gathered: for the support, and for views that are narrower. Families
    that choose over the whole batch exchange counts instead.
    """
    family = size.family
    return 0 if family.dense or family.couples_batch else 1 + (family.views is not None)


def at_once(temporaries: dict[str, int], gradients: int, dense: bool) -> int:
    """Bytes of temporaries beside the gradients, which are not there yet while latents are chosen, nor where the codes
    of a dense family are whole.
    """
    choosing = temporaries["selection"] + temporaries["candidates"]
    if dense:
        choosing, always = temporaries["codes"] + temporaries["auxk"], temporaries["tokens"]
    else:
        always = temporaries["tokens"] + temporaries["codes"]
    later = temporaries["copies"] + temporaries["piece"] + temporaries["auxk"]
    return always + max(choosing - gradients, later)
