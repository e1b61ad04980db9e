"""Latents and reconstructions of many tokens over a mesh, for every family. B tokens, d width, n latents, c slots.

Activations are in the units of the language model. The functions can be called inside jit, and run on the mesh that is
set (`jax.set_mesh`): tokens are split over `data`, latents over `latent`. With an argument `chunk`, a device takes
so many of its tokens at a time, so that the pre-activations of all tokens never exist together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.sae import forward
from jaxsae.sae.layout import LATENTS, TOKENS, Layout
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.select import EXACT, Selection, support
from jaxsae.sae.sharded import SLOTS, over_mesh
from jaxsae.sae.types import SAE, partition_specs

CHUNK = 4096


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """Latents of tokens [B@data]: c slots of each shard of the latents, and what normalisation took away."""

    values: Any  # [B@data, c@latent]
    numbers: Any  # [B@data, c@latent] int32, which of the n latents each slot has; unused slots have value 0
    support: Any  # a Support or AllLatents, whose slots are numbered within their shard
    mean: Any  # [B@data] subtracted from each token
    scale: Any  # [B@data] by which each token was divided


def encode(sae: SAE, x, selection: Selection = EXACT) -> Encoded:
    """The latents of activations x [B@data, d]; of a dense family (c = n) for few tokens only."""
    x, mean, scale = normalise(x, sae.spec.normalise)

    def local(layout, sae, x):
        v, chosen = _values(sae, x, layout, selection)
        return v, jnp.broadcast_to(chosen.numbers(sae.n) + layout.latent_offset(sae.n), v.shape), chosen

    out = over_mesh(local, (partition_specs(sae), TOKENS), (SLOTS, SLOTS, SLOTS))(sae, x)
    return Encoded(*out, mean, scale)


def reconstruct(sae: SAE, x, selection: Selection = EXACT, chunk: int = CHUNK):
    """The reconstruction [B@data, d] of activations x [B@data, d]."""
    x, mean, scale = normalise(x, sae.spec.normalise)
    xhat, _ = reconstruct_normalised(sae, x, selection, chunk)
    return denormalise(xhat, mean, scale)


def reconstruct_normalised(sae: SAE, x, selection: Selection = EXACT, chunk: int = CHUNK):
    """The reconstruction [B@data, d] of normalised x [B@data, d], and the latents with a value above 0 [B@data]."""

    def local(layout, sae, x):
        def of_chunk(x):
            v, chosen = _values(sae, x, layout, selection)
            l0 = layout.sum_latents((v > 0).sum(1, dtype=jnp.int32))
            return forward.reconstruct(used, v, chosen, layout), l0

        used = sae.as_used()
        return in_chunks(of_chunk, chunk, x)

    return over_mesh(local, (partition_specs(sae), TOKENS), (TOKENS, TOKENS))(sae, x)


def counts(sae: SAE, x, among, selection: Selection = EXACT, chunk: int = CHUNK):
    """On how many tokens of x [B@data, d], of those in `among` [B@data], each latent is not 0: int32 [n@latent]."""
    x, _, _ = normalise(x, sae.spec.normalise)

    def local(layout, sae, x, among):
        def of_chunk(count, part):
            x, among = part
            v, chosen = _values(sae, x, layout, selection)
            return chosen.count((v != 0) & among[:, None], count), None

        (zeros,) = layout.pvary(jnp.zeros_like(sae.b_enc, jnp.int32))
        # Rows that fill up the last chunk are among none.
        return layout.sum_tokens(lax.scan(of_chunk, zeros, (_chunks(x, chunk), _chunks(among, chunk)))[0])

    return over_mesh(local, (partition_specs(sae), TOKENS, TOKENS), LATENTS)(sae, x, among)


def columns(sae: SAE, x, latents, selection: Selection = EXACT, chunk: int = CHUNK):
    """The values [B@data, A] of the latents numbered `latents` [A] on x [B@data, d], and the scale [B@data] of each
    token, by which what they write is multiplied.
    """
    x, _, scale = normalise(x, sae.spec.normalise)
    latents = jnp.asarray(latents, jnp.int32)

    def local(layout, sae, x):
        at = latents - layout.latent_offset(sae.n)
        here = (at >= 0) & (at < sae.n)

        def of_chunk(x):
            v, chosen = _values(sae, x, layout, selection)
            z = _dense(v, chosen, sae.n)[:, jnp.clip(at, 0, sae.n - 1)]
            return layout.sum_latents(jnp.where(here, z, 0))

        return in_chunks(of_chunk, chunk, x)

    return over_mesh(local, (partition_specs(sae), TOKENS), TOKENS)(sae, x), scale


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
