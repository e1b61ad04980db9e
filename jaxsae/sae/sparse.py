"""The sparse algebra of an autoencoder. B tokens, d width, n latents, c slots of a code, the first `n_used` in use.

Everything after the choice of latents is one trilinear form,

    F(W, v, g) = sum_bj v[b, j] <W[i[b, j]], g[b]>        W [n, d], v [B, c], g [B, d], i [B, c] indices

and its three partial derivatives: `decode` = dF/dg, `gather_dot` = dF/dv, `scatter_outer` = dF/dW. Each is linear in
what is left, so the gradient of one is the other two. None builds [B, n] or [B, c, d]: they go slot by slot, and stop
after the last slot that any token uses (a shard's share of k is far below k). (Gao et al. 2024, appendix D.)

Inside shard_map every argument must vary over the same mesh axes (`Layout.pvary` does that at the call site): a
custom_vjp's cotangents take the types of its inputs, so nothing here may sum over the mesh.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import matmul


@jax.custom_vjp
def decode(W, v, i, n_used):
    """sum_j v[b, j] W[i[b, j]]: W [n, d], v [B, c], i [B, c] -> [B, d]."""
    v, i = v.T, i.T
    add = lambda j, out: out + v[j][:, None] * W[i[j]]
    # zeros_like(W, shape=...) inherits W's mesh axes, which plain zeros would not have.
    return lax.fori_loop(0, n_used, add, jnp.zeros_like(W, shape=(v.shape[1], W.shape[1])))


def gather_dot(W, i, g, n_used):
    """<W[i[b, j]], g[b]>, zero after the slots in use: W [n, d], i [B, c], g [B, d] -> [B, c]."""
    i = i.T
    put = lambda j, out: out.at[j].set((W[i[j]] * g).sum(-1))
    return lax.fori_loop(0, n_used, put, jnp.zeros_like(g, shape=i.shape)).T


def scatter_outer(W, v, i, g, n_used):
    """Zeros like W [n, d] with v[b, j] g[b] added to row i[b, j]."""
    v, i = v.T, i.T
    add = lambda j, out: out.at[i[j]].add(v[j][:, None] * g)
    # Zero, but XLA does not know it: it would share plain zeros between the two gradients, and copy them for each.
    zero = jnp.minimum(jnp.abs(v[0, 0]), 0)
    return lax.fori_loop(0, n_used, add, jnp.broadcast_to(zero, W.shape))


def scatter_add(b, v, i):
    """Zeros like b [n] with v[b, j] added at i[b, j]."""
    return jnp.zeros_like(b).at[i.reshape(-1)].add(v.reshape(-1))


decode.defvjp(
    lambda W, v, i, n_used: (decode(W, v, i, n_used), (W, v, i, n_used)),
    lambda r, g: (scatter_outer(r[0], r[1], r[2], g, r[3]), gather_dot(r[0], r[2], g, r[3]), None, None),
)


@jax.custom_vjp
def preactivations(W, b_enc, b_dec, i, x, n_used, known=None):
    """<W[i], x - b_dec> + b_enc[i]: W [n, d], b_enc [n], b_dec [d], i [B, c], x [B, d] -> [B, c].

    `known` [B, c]: these numbers if they are known already; then they are not computed again.
    The gradient of b_dec is that of b_enc times -W: a matrix-vector product, where AD would decode a second time.
    """
    return gather_dot(W, i, x - b_dec, n_used) + b_enc[i] if known is None else known


def _preactivations_fwd(W, b_enc, b_dec, i, x, n_used, known):
    return preactivations(W, b_enc, b_dec, i, x, n_used, known), (W, b_enc, b_dec, i, x, n_used, known)


def _preactivations_bwd(residuals, v):
    W, b_enc, b_dec, i, x, n_used, known = residuals
    db_enc = scatter_add(b_enc, v, i)
    # If nothing trains x, its gradient is dead code and XLA drops it.
    dx = decode(W, v, i, n_used)
    no_known = None if known is None else jnp.zeros_like(known)
    return scatter_outer(W, v, i, x - b_dec, n_used), db_enc, -matmul(db_enc, W), None, dx, None, no_known


preactivations.defvjp(_preactivations_fwd, _preactivations_bwd)
