"""AuxK: dead latents learn to reconstruct what the living ones leave over (Gao et al. 2024, sec. 2.4, app. A.2).

B tokens, d width, n latents of this shard, R rows of a block.

Per token, the k_aux largest positive pre-activations among dead latents decode the residual error. k_aux is in the
hundreds, where the slot-by-slot products of sparse.py are slow; instead the dead rows are compacted into blocks of R,
and everything is dense products over [B, R] blocks. There are as many blocks as the dead latents fill, and none when
nothing is dead. Which latents of a token count is a threshold: the k_aux-th largest over all shards.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import matmul
from jaxsae.sae.forward import bias
from jaxsae.sae.layout import Layout
from jaxsae.sae.struct import SAE

ROWS = 1024


def default_k_aux(d: int) -> int:
    """The power of two closest to d / 2, in ratio: 512 at d = 768 (app. B.1)."""
    return 2 ** max(0, round(math.log2(d / 2)))


def auxk_loss(sae: SAE, x, e, dead, k_aux: int, layout: Layout):
    """||e - ehat||^2 / ||e - mean e||^2 over all tokens; x, e [B, d] this shard's tokens, dead [n] its latents.

    The mean is that of the whole batch, so the loss does not depend on how tokens are split. No gradient reaches e.
    Zero where nothing is dead, where e is the same for all tokens, and where the quotient is not finite.
    """
    x, e = lax.stop_gradient(x), lax.stop_gradient(e)
    any_dead = layout.sum_latents(dead.sum()) > 0
    *weights, x, dead = layout.vary(sae.W_enc, sae.b_enc, sae.W_dec, bias(sae), x, dead)
    ehat = layout.sum_latents(dead_decode(tuple(weights), x, dead, k_aux, layout))
    tokens = layout.sum_tokens(jnp.ones_like(e, shape=()) * len(e))
    spread_out = e - layout.sum_tokens(e.sum(0)) / tokens
    variance = layout.sum_tokens((spread_out**2).sum())
    squares = lambda ehat: layout.sum_tokens(((e - ehat) ** 2).sum())
    defined = any_dead & (variance > 0) & jnp.isfinite(squares(lax.stop_gradient(ehat)) / variance)
    # Safe numbers first: the gradient of the branch that is not taken must be finite too.
    error = squares(jnp.where(defined, ehat, 0))
    return jnp.where(defined, error / jnp.where(defined, variance, 1), 0)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def dead_decode(weights, x, dead, k_aux: int, layout: Layout):
    """This shard's part of ehat [B, d]: the k_aux largest positive pre-activations of the dead, decoded, no bias."""
    return _forward(weights, x, dead, k_aux, layout)[0]


def _forward(weights, x, dead, k_aux, layout):
    W_enc, b_enc, W_dec, b_dec = weights
    n = len(b_enc)
    rows = min(ROWS, n)
    count = dead.sum()
    # Row numbers of the dead, first; then n, which no row has.
    order = jnp.nonzero(dead, size=-(-n // rows) * rows, fill_value=n)[0].astype(jnp.int32)
    blocks = (count + rows - 1) // rows
    x = x - b_dec

    # While there are no more dead latents than places, every one of them has its place.
    crowded = layout.sum_latents(count) > k_aux

    def candidates(t, best):
        z = _block(W_enc, b_enc, x, order, t, rows)[1]
        return lax.top_k(jnp.concatenate([best, z], 1), k_aux)[0]

    best = jnp.full_like(x, -jnp.inf, shape=(len(x), k_aux))
    best = lax.fori_loop(0, jnp.where(crowded, blocks, 0), candidates, best)
    least = layout.threshold(best, k_aux)
    # Each loop computes the pre-activations anew, and XLA may round them differently there: without room for a few
    # units in the last place, the k_aux-th itself could fall below its own threshold.
    size = jnp.maximum(jnp.abs(least), jnp.sqrt((x * x).sum(1, keepdims=True)))
    least = jnp.where(jnp.isfinite(least), least - 16 * jnp.finfo(x.dtype).eps * size, least)

    def add(t, ehat):
        i, z = _block(W_enc, b_enc, x, order, t, rows)
        return ehat + matmul(_active(z, least), W_dec[i])

    ehat = lax.fori_loop(0, blocks, add, jnp.zeros_like(x))
    return ehat, (weights, x, order, blocks, least)


def _block(W_enc, b_enc, x, order, t, rows):
    """Row numbers [R] of block t and their pre-activations [B, R], -inf behind the last dead latent."""
    i = lax.dynamic_slice_in_dim(order, t * rows, rows)
    real = i < len(b_enc)
    i = jnp.where(real, i, 0)
    return i, jnp.where(real, matmul(x, W_enc[i].T) + b_enc[i], -jnp.inf)


def _active(z, least):
    return jnp.where((z > 0) & (z >= least), z, 0)


def _backward(k_aux, layout, residuals, g):
    (W_enc, b_enc, W_dec, b_dec), x, order, blocks, least = residuals
    rows = min(ROWS, len(b_enc))

    def add(t, grads):
        dW_enc, db_enc, dW_dec, db_dec = grads
        i, z = _block(W_enc, b_enc, x, order, t, rows)
        a = _active(z, least)
        da = jnp.where(a > 0, matmul(g, W_dec[i].T), 0)
        db = da.sum(0)
        # Behind the last dead latent a and da are zero, so nothing is added to row 0.
        return (
            dW_enc.at[i].add(matmul(da.T, x)),
            db_enc.at[i].add(db),
            dW_dec.at[i].add(matmul(a.T, g)),
            db_dec - matmul(db, W_enc[i]),
        )

    zeros = jax.tree.map(jnp.zeros_like, (W_enc, b_enc, W_dec, b_dec))
    return lax.fori_loop(0, blocks, add, zeros), jnp.zeros_like(x), None


dead_decode.defvjp(_forward, _backward)
