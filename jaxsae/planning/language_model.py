"""Bytes of a device that a language model takes whose activations are trained on, from its config alone.

Its sublayers are traced, and nothing is compiled. b contexts of T tokens go through it at once.
"""

import math

import jax
import jax.numpy as jnp

from jaxsae.config import Config
from jaxsae.data.activations import TOKENS_AT_ONCE
from jaxsae.lm import late
from jaxsae.lm.place import split_axis

# Of the largest array that a sublayer makes there are two: logits and weights of attention, or neurons before and after
# their activation function.
LARGEST_AT_ONCE = 2
# Sublayers that are looked at: of the first blocks, of which later ones are repetitions.
SUBLAYERS = 4


def lm_bytes(config: Config, lm, devices: int, kind: str) -> dict[str, int]:
    """`lm`, a language model's config, on a mesh of so many devices of a `kind`, as `jaxsae train` places and runs it.

    lm       its parameters, of the type and split as the flags say
    lm_work  the parameters of one piece that are gathered, the largest that is widened, and activations
    """
    itemsize, leaves = jnp.dtype(config.lm.lm_dtype).itemsize, jax.tree.leaves(late.shapes(lm))
    # Which axis it is depends on the files, whether there is one does not.
    divides = lambda shape: split_axis(shape, shape, devices) is not None
    shard = config.lm.lm_shard and devices > 1
    parts = [devices if shard and divides(leaf.shape) else 1 for leaf in leaves]
    held = sum(itemsize * leaf.size // part for leaf, part in zip(leaves, parts))
    pieces = late.pieces(lm)
    pieces = pieces[: 1 + SUBLAYERS] + pieces[-2:] if len(pieces) > 3 + SUBLAYERS else pieces
    gathered = [sum(itemsize * leaves[i].size for i in late.reads(lm, *piece) if parts[i] > 1) for piece in pieces]
    widens = itemsize < 4 and config.lm.lm_precision != "bfloat16"
    widened = 4 * max(leaf.size for leaf in leaves) if widens else 0
    return {"lm": held, "lm_work": max(gathered) + widened + _activations(config, lm, devices, kind, pieces)}


def _activations(config: Config, lm, devices: int, kind: str, pieces: list) -> int:
    """The stream before and after a sublayer, and what is largest in one."""
    length, batch = config.data.context, config.training.batch.batch_size
    buffered = -(-config.data.buffer_batches * batch // (length * devices))
    shape = min(buffered, max(1, TOKENS_AT_ONCE[kind] // length)), length
    largest = 0
    for piece in pieces:
        if piece[0] == "sublayer":
            function, x = late.piece_of(lm, *piece, shape)
            largest = max(largest, _largest(jax.make_jaxpr(function)(late.shapes(lm), x).jaxpr))
    return 4 * 2 * math.prod(shape) * lm.d_model + LARGEST_AT_ONCE * largest


def _largest(program) -> int:
    """Bytes of the largest array that a jaxpr makes."""
    largest = 0
    for step in program.eqns:
        inner = [p for p in jax.tree.leaves([*step.params.values()], is_leaf=_is_program) if _is_program(p)]
        sizes = [variable.aval.size * variable.aval.dtype.itemsize for variable in step.outvars]
        largest = max([largest, *sizes, *map(_largest, inner)])
    return largest


def _is_program(value) -> bool:
    return hasattr(value, "eqns")
