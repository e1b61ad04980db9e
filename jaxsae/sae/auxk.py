"""AuxK: dead latents learn to reconstruct what the living ones leave over (Gao et al. 2024, sec. 2.4, app. A.2).

B tokens, d width, n latents of this shard, R rows of a block.

Per token, the k_aux largest positive pre-activations among dead latents decode the residual error. k_aux is in the
hundreds, where the slot-by-slot products of sparse.py are slow; instead the dead rows are compacted into blocks of R,
and everything is dense products over [B, R] blocks. There are as many blocks as the dead latents fill, and none when
nothing is dead. The pre-activations of the first blocks are kept; those of further ones are computed when they are
needed, so that memory does not grow with the number of the dead. Which latents of a token count is a threshold: the
k_aux-th largest over all shards, found bit by bit by counting, so that only counts move between shards.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import matmul
from jaxsae.sae.kth_largest import kth_largest
from jaxsae.sae.layout import Layout
from jaxsae.sae.types import SAE

ROWS = 512
# Blocks whose pre-activations are kept at most, whatever memory is allowed.
KEPT = 8


def default_k_aux(d: int) -> int:
    """The power of two closest to d / 2, in ratio: 512 at d = 768 (app. B.1)."""
    return 2 ** max(0, round(math.log2(d / 2)))


def auxk_loss(e, ehat, variance=None):
    """||e - ehat||^2 / ||e - mean e||^2 over all tokens of e, ehat [B, d]; no gradient reaches e.

    `variance` is the denominator, where these are not all the tokens of a batch. Zero where e is the same for all
    tokens, and where the quotient is not finite.
    """
    e = lax.stop_gradient(e)
    variance = total_variance(e) if variance is None else variance
    defined = (variance > 0) & jnp.isfinite(((e - lax.stop_gradient(ehat)) ** 2).sum() / variance)
    # Safe numbers first: the gradient of the branch that is not taken must be finite too.
    error = ((e - jnp.where(defined, ehat, 0)) ** 2).sum()
    return jnp.where(defined, error / jnp.where(defined, variance, 1), 0)


def total_variance(e):
    """||e - mean e||^2 over all tokens of e [B, d]."""
    return ((e - e.mean(0)) ** 2).sum()


def dead_code(sae: SAE, x, dead, k_aux: int, layout: Layout, memory: int):
    """ehat [B, d]: the k_aux largest positive pre-activations of the dead [n], decoded without bias; and the sae.

    That is the same one, and what uses it afterwards has its gradient of W_enc and W_dec added up in the same buffers.
    """
    *weights, x, dead = layout.pvary(sae.W_enc, sae.b_enc, sae.W_dec, sae.input_bias(), lax.stop_gradient(x), dead)
    kept = max(1, min(KEPT, memory // (x.dtype.itemsize * len(x) * ROWS)))
    ehat, W_enc, W_dec = _dead_decode(tuple(weights), x, dead, k_aux, layout, kept)
    return layout.sum_latents(ehat), sae.replace(W_enc=W_enc, W_dec=W_dec)


class Blocks(NamedTuple):
    """The dead rows of a shard, in blocks."""

    order: Any  # row numbers of the dead, first; then n, which no row has
    count: Any  # how many blocks there are
    z: Any  # [kept, B, R] pre-activations of the first blocks, -inf after the last dead latent


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _dead_decode(weights, x, dead, k_aux: int, layout: Layout, kept: int):
    return _forward(weights, x, dead, k_aux, layout, kept)[0]


def _forward(weights, x, dead, k_aux, layout, kept):
    W_enc, b_enc, W_dec, b_dec = weights
    n, rows = len(b_enc), min(ROWS, len(b_enc))
    kept = min(kept, -(-n // rows))
    count = dead.sum(dtype=jnp.int32)
    x = x - b_dec
    blocks = Blocks(
        jnp.nonzero(dead, size=-(-n // rows) * rows, fill_value=n)[0].astype(jnp.int32),
        (count + rows - 1) // rows,
        jnp.full_like(x, -jnp.inf, shape=(kept, len(x), rows)),
    )

    def keep(t, z):
        return z.at[t].set(_block(weights, x, blocks.order, t, rows)[1])

    blocks = blocks._replace(z=lax.fori_loop(0, jnp.minimum(blocks.count, kept), keep, blocks.z))
    # While there are no more dead latents than places, every one of them has its place.
    crowded = layout.sum_latents(count) > k_aux
    least = _threshold(weights, x, blocks, k_aux, crowded, layout)

    def add(i, a, ehat):
        return ehat + matmul(a, W_dec[i])

    ehat = _over_blocks(add, jnp.zeros_like(x, shape=(len(x), W_dec.shape[1])), weights, x, blocks, least)
    return (ehat, W_enc, W_dec), (weights, x, blocks, least)


def _backward(k_aux, layout, kept, residuals, cotangents):
    weights, x, blocks, least = residuals
    W_enc, b_enc, W_dec, b_dec = weights
    g, dW_enc, dW_dec = cotangents

    def add(i, a, grads):
        dW_enc, db_enc, dW_dec, db_dec = grads
        da = jnp.where(a > 0, matmul(g, W_dec[i].T), 0)
        db = da.sum(0)
        # After the last dead latent a and da are zero, so nothing is added to row 0.
        return (
            dW_enc.at[i].add(matmul(da.T, x)),
            db_enc.at[i].add(db),
            dW_dec.at[i].add(matmul(a.T, g)),
            db_dec - matmul(db, W_enc[i]),
        )

    # What came before is added to in place: a second pair of [n, d] gradients would be the largest of all temporaries.
    grads = dW_enc, jnp.zeros_like(b_enc), dW_dec, jnp.zeros_like(b_dec)
    return _over_blocks(add, grads, weights, x, blocks, least), jnp.zeros_like(x), None


_dead_decode.defvjp(_forward, _backward)


def _block(weights, x, order, t, rows):
    """Row numbers [R] of block t (0 after the last dead latent) and its pre-activations [B, R]."""
    W_enc, b_enc, _, _ = weights
    i, real = _rows(order, t, rows, len(b_enc))
    return i, jnp.where(real, matmul(x, W_enc[i].T) + b_enc[i], -jnp.inf)


def _rows(order, t, rows, n):
    i = lax.dynamic_slice_in_dim(order, t * rows, rows)
    return jnp.where(i < n, i, 0), i < n


def _over_blocks(body, carry, weights, x, blocks: Blocks, least):
    """carry = body(row numbers [R], activations [B, R], carry) for every block; `least` [B, 1] is the threshold."""
    kept, _, rows = blocks.z.shape
    n = len(weights[1])

    def from_memory(t, carry):
        return body(_rows(blocks.order, t, rows, n)[0], _active(blocks.z[t], least), carry)

    # XLA may round a product differently in each loop: without room for a few units in the last place, the k_aux-th
    # itself could fall below its own threshold.
    size = jnp.maximum(jnp.abs(least), jnp.sqrt((x * x).sum(1, keepdims=True)))
    low = least - 16 * jnp.finfo(x.dtype).eps * size

    def anew(t, carry):
        i, z = _block(weights, x, blocks.order, t, rows)
        return body(i, _active(z, low), carry)

    carry = lax.fori_loop(0, jnp.minimum(blocks.count, kept), from_memory, carry)
    if kept * rows >= len(blocks.order):
        return carry
    return lax.fori_loop(kept, blocks.count, anew, carry)


def _active(z, least):
    return jnp.where((z > 0) & (z >= least), z, 0)


def _threshold(weights, x, blocks: Blocks, k_aux, crowded, layout):
    """The k_aux-th largest positive pre-activation of each token over all shards, [B, 1]; 0 if there are fewer."""
    kept, tokens, rows = blocks.z.shape
    many = kept * rows < len(blocks.order)

    # Of the blocks that are not kept, the k_aux largest are enough.
    def candidates(t, best):
        z = _block(weights, x, blocks.order, t, rows)[1]
        return lax.top_k(jnp.concatenate([best, z], 1), k_aux)[0]

    best = jnp.full_like(x, -jnp.inf, shape=(tokens, k_aux if many else 0))
    if many:
        best = lax.fori_loop(kept, jnp.where(crowded, blocks.count, kept), candidates, best)

    def reached(least):
        above = lambda z: (z >= least[:, None]).sum(1, dtype=jnp.int32)
        in_blocks = lambda t, total: total + above(blocks.z[t])
        total = lax.fori_loop(0, jnp.minimum(blocks.count, kept), in_blocks, above(best))
        return layout.sum_latents(total) >= k_aux

    return kth_largest(reached, jnp.zeros_like(x, shape=(tokens,)), crowded)[:, None]
