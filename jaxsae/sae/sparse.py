"""The sparse algebra of an autoencoder. B tokens, d width, n latents, k chosen latents a token.

Everything after the choice of latents is one trilinear form,

    F(W, v, g) = sum_bj v[b, j] <W[i[b, j]], g[b]>        W [n, d], v [B, k], g [B, d], i [B, k] indices

and its three partial derivatives: `decode` = dF/dg, `pick` = dF/dv, `spread` = dF/dW. Each is linear in what is left,
so the gradient of one is the other two. None builds [B, n] or [B, k, d]. (Gao et al. 2024, appendix D.)

Inside shard_map every argument must vary over the same mesh axes (`Layout.vary` does that at the call site): a
custom_vjp's cotangents take the types of its inputs, so nothing here may sum over the mesh.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import matmul


@jax.custom_vjp
def decode(W, v, i):
    """sum_j v[b, j] W[i[b, j]]: W [n, d], v [B, k], i [B, k] -> [B, d]."""

    def add(out, slot):
        v, i = slot
        return out + v[:, None] * W[i], None

    # zeros_like(W, shape=...) inherits W's mesh axes, which plain zeros would not have.
    return lax.scan(add, jnp.zeros_like(W, shape=(len(v), W.shape[1])), (v.T, i.T))[0]


@jax.custom_vjp
def pick(W, i, g):
    """<W[i[b, j]], g[b]>: W [n, d], i [B, k], g [B, d] -> [B, k]."""
    return lax.map(lambda i: (W[i] * g).sum(-1), i.T).T


def spread(W, v, i, g):
    """Zeros like W [n, d] with v[b, j] g[b] added to row i[b, j]."""

    def add(out, slot):
        v, i = slot
        return out.at[i].add(v[:, None] * g), None

    return lax.scan(add, jnp.zeros_like(W), (v.T, i.T))[0]


def tally(b, v, i):
    """Zeros like b [n] with v[b, j] added at i[b, j]."""
    return jnp.zeros_like(b).at[i.reshape(-1)].add(v.reshape(-1))


decode.defvjp(
    lambda W, v, i: (decode(W, v, i), (W, v, i)),
    lambda r, g: (spread(r[0], r[1], r[2], g), pick(r[0], r[2], g), None),
)
pick.defvjp(
    lambda W, i, g: (pick(W, i, g), (W, i, g)),
    lambda r, v: (spread(r[0], v, r[1], r[2]), None, decode(r[0], v, r[1])),
)


@jax.custom_vjp
def preactivations(W, b_enc, b_dec, i, x):
    """<W[i], x - b_dec> + b_enc[i]: W [n, d], b_enc [n], b_dec [d], i [B, k], x [B, d] -> [B, k].

    The gradient of b_dec is that of b_enc times -W: a matrix-vector product, where AD would decode a second time.
    """
    return pick(W, i, x - b_dec) + b_enc[i]


def _preactivations_fwd(W, b_enc, b_dec, i, x):
    return preactivations(W, b_enc, b_dec, i, x), (W, b_enc, b_dec, i, x)


def _preactivations_bwd(residuals, v):
    W, b_enc, b_dec, i, x = residuals
    db_enc = tally(b_enc, v, i)
    # Where nothing trains x, its gradient is dead code and XLA drops it.
    return spread(W, v, i, x - b_dec), db_enc, -matmul(db_enc, W), None, decode(W, v, i)


preactivations.defvjp(_preactivations_fwd, _preactivations_bwd)
