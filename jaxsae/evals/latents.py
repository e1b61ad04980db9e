"""Latents and reconstructions of many tokens over a mesh, for every family. B tokens, d width, n latents, c slots.

Activations are in the units of the language model. The functions can be called inside jit, and run on the mesh that is
set (`jax.set_mesh`): tokens are split over `data`, latents over `latent`. With an argument `chunk`, a device takes
so many of its tokens at a time, so that the pre-activations of all tokens never exist together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.sae import activation_functions, forward, sparse
from jaxsae.sae.decoder import row_norms
from jaxsae.sae.layout import LATENTS, REPLICATED, TOKENS, Layout
from jaxsae.sae.normalise import denormalise, normalise_pair
from jaxsae.sae.select import EXACT, Selection, support
from jaxsae.sae.sharded import SLOTS, over_mesh
from jaxsae.sae.types import SAE, Code, partition_specs

CHUNK = 4096


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """Latents of tokens [B@data]: c slots of each shard of the latents, and what normalisation took away."""

    values: Any  # [B@data, c@latent]
    numbers: Any  # [B@data, c@latent] int32, which of the n latents each slot has; unused slots have value 0
    support: Any  # a Support or AllLatents, whose slots are numbered within their shard
    mean: Any  # [B@data] subtracted from each token, or what is added to a transcoder's output
    scale: Any  # [B@data] by which each token was divided, or a transcoder's output is multiplied


def normalised(sae: SAE, x):
    """(normalised x, mean, scale) of activations x [..., d]; mean and scale are those of what `sae` makes of them."""
    x, _, mean, scale = normalise_pair((x,), sae.spec.normalise, sae.spec.sections, sae.scale_out)
    return x, mean, scale


def encode(sae: SAE, x, selection: Selection = EXACT) -> Encoded:
    """The latents of activations x [B@data, d]; of a dense family (c = n) for few tokens only."""
    x, mean, scale = normalised(sae, x)

    def local(layout, sae, x):
        v, chosen = _values(sae, x, layout, selection)
        return v, jnp.broadcast_to(chosen.numbers(sae.n) + layout.latent_offset(sae.n), v.shape), chosen

    out = over_mesh(local, (partition_specs(sae), TOKENS), (SLOTS, SLOTS, SLOTS))(sae, x)
    return Encoded(*out, mean, scale)


def reconstruct(sae: SAE, x, selection: Selection = EXACT, chunk: int = CHUNK):
    """The reconstruction [B@data, d] of activations x [B@data, d]."""
    x, mean, scale = normalised(sae, x)
    xhat, _ = reconstruct_normalised(sae, x, selection, chunk)
    return denormalise(xhat, mean, scale)


def reconstruct_normalised(sae: SAE, x, selection: Selection = EXACT, chunk: int = CHUNK):
    """The reconstruction [B@data, d] of normalised x [B@data, d], and the latents with a value above 0 [B@data]."""

    def local(layout, sae, x):
        used = sae.as_used()
        return in_chunks(lambda x: _reconstructed(sae, used, x, layout, selection)[:2], chunk, x)

    return over_mesh(local, (partition_specs(sae), TOKENS), (TOKENS, TOKENS))(sae, x)


def reconstruct_and_count(sae: SAE, x, among, selection: Selection = EXACT, chunk: int = CHUNK):
    """What `reconstruct_normalised` returns, and sums over the tokens in `among` [B@data] of each latent: how often its
    value is above 0, int32 [n@latent], and the squared norm of what it writes [n@latent].
    """

    def local(layout, sae, x, among):
        def of_chunk(sums, part):
            x, among = part
            xhat, l0, v, chosen = _reconstructed(sae, used, x, layout, selection)
            v = jnp.where(among[:, None], v, 0)
            return (chosen.count(v > 0, sums[0]), chosen.count(v * v, sums[1])), (xhat, l0)

        used = sae.as_used()
        zeros = layout.pvary(jnp.zeros_like(sae.b_enc, jnp.int32), jnp.zeros_like(sae.b_enc))
        # Rows that fill up the last chunk are among none.
        sums, each = lax.scan(of_chunk, zeros, (_chunks(x, chunk), _chunks(among, chunk)))
        fired, squares = (layout.sum_tokens(a) for a in sums)
        written = squares * row_norms(used.W_dec)[:, 0] ** 2
        return *(a.reshape(-1, *a.shape[2:])[: len(x)] for a in each), fired, written

    where = TOKENS, TOKENS, LATENTS, LATENTS
    return over_mesh(local, (partition_specs(sae), TOKENS, TOKENS), where)(sae, x, among)


def counts(sae: SAE, x, among, selection: Selection = EXACT, chunk: int = CHUNK):
    """On how many tokens of x [B@data, d], of those in `among` [B@data], each latent is not 0: int32 [n@latent]."""
    x = normalised(sae, x)[0]

    def local(layout, sae, x, among):
        def of_chunk(count, part):
            x, among = part
            v, chosen = _values(sae, x, layout, selection)
            return chosen.count((v != 0) & among[:, None], count), None

        (zeros,) = layout.pvary(jnp.zeros_like(sae.b_enc, jnp.int32))
        # Rows that fill up the last chunk are among none.
        return layout.sum_tokens(lax.scan(of_chunk, zeros, (_chunks(x, chunk), _chunks(among, chunk)))[0])

    return over_mesh(local, (partition_specs(sae), TOKENS, TOKENS), LATENTS)(sae, x, among)


def sums(sae: SAE, x, weights, selection: Selection = EXACT, chunk: int = CHUNK):
    """Sums of each latent's values over the tokens of x [B@data, d] that have a weight other than 0, [n@latent] each:
    (the sums weighted by each column of `weights` [B@data, L], those of absolute values, how many are not 0).
    """
    x = normalised(sae, x)[0]
    labels = weights.shape[1]

    def local(layout, sae, x, weights):
        def of_chunk(totals, part):
            x, weights = part
            v, chosen = _values(sae, x, layout, selection)
            v = jnp.where((weights != 0).any(1, keepdims=True), v, 0)
            numbers = *(v * weights[:, i, None] for i in range(labels)), jnp.abs(v), v != 0
            return tuple(map(chosen.count, numbers, totals)), None

        zeros = layout.pvary(*[jnp.zeros_like(sae.b_enc)] * (labels + 2))
        totals, _ = lax.scan(of_chunk, zeros, (_chunks(x, chunk), _chunks(weights, chunk)))
        return tuple(map(layout.sum_tokens, totals))

    specs = partition_specs(sae), TOKENS, TOKENS
    *weighted, absolute, nonzero = over_mesh(local, specs, (LATENTS,) * (labels + 2))(sae, x, weights)
    return weighted, absolute, nonzero


def columns(sae: SAE, x, latents, selection: Selection = EXACT, chunk: int = CHUNK):
    """The values [B@data, A] of the latents numbered `latents` [A] on x [B@data, d], and the scale [B@data] of each
    token, by which what they write is multiplied.
    """
    x, _, scale = normalised(sae, x)
    latents = jnp.asarray(latents, jnp.int32)

    def local(layout, sae, x):
        at, here = on_shard(latents, layout, sae.n)

        def of_chunk(x):
            v, chosen = _values(sae, x, layout, selection)
            z = _dense(v, chosen, sae.n)[:, at]
            return layout.sum_latents(jnp.where(here, z, 0))

        return in_chunks(of_chunk, chunk, x)

    return over_mesh(local, (partition_specs(sae), TOKENS), TOKENS)(sae, x), scale


def code(sae: SAE, x, selection: Selection = EXACT) -> Code:
    """The code of activations x [B@data, d], the same on all shards of the latents: values and indices [B@data, c], the
    largest values first.

    c is k if the activation function never uses more; else the largest L0 of all tokens, rounded up to a power of two.
    That is not known inside jit, so this is called outside.
    """
    if activation_functions.get(sae.spec.activation).at_most_k:
        slots = min(sae.spec.k, sae.n)
    else:
        slots = min(sae.n, 1 << (max(1, int(_most(sae, x, selection))) - 1).bit_length())
    return _code(sae, x, slots, selection)


@partial(jax.jit, static_argnames="selection")
def _most(sae: SAE, x, selection: Selection):
    """The largest number of latents of a token with a value other than 0, []."""
    return jax.reshard(_l0(sae, normalised(sae, x)[0], selection), REPLICATED).max()


def _l0(sae: SAE, x, selection: Selection):
    def local(layout, sae, x):
        def of_chunk(x):
            return layout.sum_latents((_values(sae, x, layout, selection)[0] != 0).sum(1, dtype=jnp.int32))

        return in_chunks(of_chunk, CHUNK, x)

    return over_mesh(local, (partition_specs(sae), TOKENS), TOKENS)(sae, x)


@partial(jax.jit, static_argnames=("slots", "selection"))
def _code(sae: SAE, x, slots: int, selection: Selection) -> Code:
    x, mean, scale = normalised(sae, x)

    def local(layout, sae, x):
        def of_chunk(x):
            v, chosen = _values(sae, x, layout, selection)
            numbers = jnp.broadcast_to(chosen.numbers(sae.n) + layout.latent_offset(sae.n), v.shape)
            return _largest(v, numbers, min(slots, v.shape[1]))

        return in_chunks(of_chunk, CHUNK, x)

    of_shards = over_mesh(local, (partition_specs(sae), TOKENS), (SLOTS, SLOTS))(sae, x)
    v, i = _largest(*(jax.reshard(a, TOKENS) for a in of_shards), slots)
    return Code(v, jnp.where(v != 0, i, 0), mean, scale)


def _largest(v, numbers, count: int):
    v, at = lax.top_k(v, count)
    return v, jnp.take_along_axis(numbers, at, -1)


def decode(sae: SAE, values, indices, chunk: int = CHUNK):
    """The normalised reconstruction [B@data, d] of values [B@data, c] of the latents `indices` [B@data, c]."""

    def local(layout, sae, v, i):
        def of_chunk(v, i):
            at, here = on_shard(i, layout, sae.n)
            v, at, W = layout.pvary(jnp.where(here, v, 0), at, used.W_dec)
            return layout.sum_latents(sparse.decode(W, v, at, v.shape[1])) + used.b_dec

        used = sae.as_used()
        return in_chunks(of_chunk, chunk, v, i)

    return over_mesh(local, (partition_specs(sae), TOKENS, TOKENS), TOKENS)(sae, values, indices)


def on_shard(indices, layout: Layout, n: int):
    """Indices of latents as rows of this shard's weights, and which of them it has."""
    at = indices - layout.latent_offset(n)
    return jnp.clip(at, 0, n - 1), (at >= 0) & (at < n)


def in_chunks(function: Callable, rows: int, *arrays):
    """function(*parts) of arrays, or trees of them, [N, ...], `rows` rows at a time.

    Every row of a result must depend on one row alone: rows of zeros fill up the last part, and are cut off the results
    [N, ...].
    """
    N = len(jax.tree.leaves(arrays)[0])
    out = lax.map(lambda parts: function(*parts), jax.tree.map(lambda a: _chunks(a, rows), arrays))
    return jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])[:N], out)


def _chunks(a, rows: int):
    """Rows [N, ...] as [chunks, rows, ...], filled up with zeros."""
    rows = min(rows, len(a))
    return jnp.pad(a, ((0, -len(a) % rows), *((0, 0),) * (a.ndim - 1))).reshape(-1, rows, *a.shape[1:])


def _values(sae: SAE, x, layout: Layout, selection: Selection):
    """Values [B, c] of normalised x [B, d] on one shard, and their support."""
    chosen = support(sae, x, layout, selection)
    return forward.values_of(sae, forward.preacts_of(sae, x, chosen, layout), chosen), chosen


def _dense(v, chosen, n: int):
    """Values [B, c] of one shard as [B, n]."""
    number = jnp.broadcast_to(chosen.numbers(n), v.shape)
    return jnp.zeros_like(v, shape=(len(v), n)).at[jnp.arange(len(v))[:, None], number].add(v)


def _reconstructed(sae: SAE, used: SAE, x, layout: Layout, selection: Selection):
    """Reconstruction and L0 of normalised x [B, d], the same on all shards, and this shard's values and support; `used`
    is `sae.as_used()`.
    """
    v, chosen = _values(sae, x, layout, selection)
    l0 = layout.sum_latents((v > 0).sum(1, dtype=jnp.int32))
    return forward.reconstruct(used, v, chosen, layout, forward.skip_of(used, x)), l0, v, chosen
