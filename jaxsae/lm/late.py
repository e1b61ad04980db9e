"""Parameters that are made ready just before they are used: gathered from all devices, and widened to float32.

A language model may be split over the devices of a mesh (`LM.split`), and it may be kept in half precision. A piece of
it (the embedding, a sublayer, the final norm, the unembedding) then takes the parameters that it reads, and no others,
whole and in float32, and lets go of them at its end. So one piece's parameters are there at a time beside each device's
share, and what is computed is what a float32 model of the same numbers computes.

Two things keep it so. A barrier ties the parameters to the activations that come in, so that the compiler neither takes
the gathering out of a loop nor does it for all pieces at once. And a backward pass gathers again, instead of keeping
from the forward pass what was gathered there.

Which parameters a piece reads is seen from its program, so a family need do nothing but keep those of its sublayers in
arrays of their own.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec

from jaxsae.lm.architecture import of
from jaxsae.precision import varying

# The axes of the mesh; a split leaf is split over all of them.
AXES = ("data", "latent")


def specs(lm):
    """`lm` with the PartitionSpec of each of its parameters on a mesh."""
    leaves, tree = jax.tree.flatten(lm.params)
    split = lm.split or (None,) * len(leaves)
    return replace(lm, params=tree.unflatten([spec(axis) for axis in split]))


def spec(axis: int | None) -> PartitionSpec:
    """Of a leaf that is split along `axis` (None: along none)."""
    return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, AXES)


def call(function: Callable, lm, piece: str, x, i: int | None = None, again: bool = True):
    """function(params, x), where `piece` (of sublayers number `i`) of the language model is all that it computes.

    `again`: a backward pass makes the parameters ready again, and keeps nothing but `x` and what products gave.
    """
    narrow = any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(lm.params))
    if lm.split is None and not narrow:
        return function(lm.params, x)
    leaves, tree = jax.tree.flatten(lm.params)
    read, split = reads(lm.config, piece, i), lm.split or (None,) * len(leaves)

    def run(used, x):
        ready = leaves.copy()
        for index, leaf in zip(read, used, strict=True):
            whole = _gathered(_after(x, leaf), split[index])
            # Of an embedding few rows are read, and its scale may be rounded to the type of the table.
            ready[index] = whole if piece == "embed" else _widened(whole)
        return function(tree.unflatten(ready), x)

    if again:
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.dots_saveable)
    return run([leaves[index] for index in read], x)


def gathered(lm, piece: str, x):
    """`lm` with what `piece` reads gathered once `x` is there, for a loop around that piece."""
    if lm.split is None:
        return lm
    leaves, tree = jax.tree.flatten(lm.params)
    split = list(lm.split)
    for index in reads(lm.config, piece):
        leaves[index], split[index] = _gathered(_after(x, leaves[index]), split[index]), None
    return replace(lm, params=tree.unflatten(leaves), split=tuple(split))


@functools.cache
def reads(config, piece: str, i: int | None = None) -> tuple[int, ...]:
    """The numbers of the leaves of the parameters that a piece of a language model reads."""
    leaves, tree = jax.tree.flatten(shapes(config))
    function, x = piece_of(config, piece, i)
    # This may be asked for in the midst of a program for a mesh, of which nothing here is a part.
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        program = jax.make_jaxpr(lambda leaves, x: function(tree.unflatten(leaves), x))(leaves, x).jaxpr
    used = {*map(id, program.outvars), *(id(variable) for step in program.eqns for variable in step.invars)}
    return tuple(i for i, variable in enumerate(program.invars[: len(leaves)]) if id(variable) in used)


@functools.cache
def shapes(config):
    """A language model's parameters with a jax.ShapeDtypeStruct in the place of each array."""
    return of(config).shapes(config)


def pieces(config) -> list[tuple[str, int | None]]:
    """All pieces of a language model, in order."""
    sublayers = len(of(config).cuts(config)) - 1
    return [("embed", None), *(("sublayer", i) for i in range(sublayers)), ("final_norm", None), ("unembed", None)]


def piece_of(config, piece: str, i: int | None, shape: tuple[int, int] = (1, 1)):
    """(params, x) -> the result of a piece, and the shape of its x for tokens of that `shape`."""
    family = of(config)
    stream = jax.ShapeDtypeStruct((*shape, config.d_model), jnp.float32)
    if piece == "embed":
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
        return lambda params, tokens: family.embed(params, config, tokens, None), tokens
    if piece == "sublayer":
        return lambda params, x: family.sublayer(params, config, x, i, None, lambda hook, value: value), stream
    function = getattr(family, piece)
    return lambda params, x: function(params, config, x), stream


def _after(x, leaf):
    """`leaf`, for the compiler not there before `x`. One for each leaf: what is tied varies over the same devices."""
    return lax.optimization_barrier((leaf, x))[0]


def _gathered(leaf, axis: int | None):
    if axis is None:
        return leaf
    # Outside of shard_map arrays are global.
    if not varying(leaf):
        return jax.reshard(leaf, PartitionSpec())
    return lax.all_gather(leaf, AXES, axis=axis, tiled=True, to="invarying")


def _widened(leaf):
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
