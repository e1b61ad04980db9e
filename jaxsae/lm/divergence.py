"""How much a language model's predictions change if its stream is changed. N tokens, V vocabulary.

KL(original || substituted), in nats, of the distributions of the next token: the direction of Braun et al. 2024's code
(their formula, and their docstring, have it the other way round).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.lm import late
from jaxsae.lm.model import LM, unembed

# Logits that stay in a CPU's caches.
CACHED = 400_000


def kl(original, substituted):
    """KL(original || substituted) from two logit arrays [..., V]; returns [...]."""
    p, q = jax.nn.log_softmax(original), jax.nn.log_softmax(substituted)
    return (jnp.exp(p) * (p - q)).sum(-1)


def kl_of_streams(lm: LM, original, substituted, chunk: int, reverse: bool = False):
    """KL(original || substituted) from two arrays [N, d] of what the unembedding reads (`lm.final`); returns [N].

    `reverse` gives KL(substituted || original). The logits of `chunk` tokens exist at once: neither [N, V] nor a
    gradient of the language model is ever made, and the gradient reaches `substituted` alone.
    """
    return _kl_of_streams(late.gathered(lm, "unembed", substituted), original, substituted, chunk, reverse)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _kl_of_streams(lm: LM, original, substituted, chunk: int, reverse: bool):
    divergence = (lambda p, q: kl(q, p)) if reverse else kl
    return _in_chunks(lambda p, q: divergence(unembed(lm, p), unembed(lm, q)), chunk, original, substituted)


def _forward(lm: LM, original, substituted, chunk: int, reverse: bool):
    """The values, and as residual their gradients [N, d]: so the backward pass needs no logits a second time."""

    def slope(p, q):
        p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        if reverse:
            value = (jnp.exp(q) * (q - p)).sum(-1)
            return value, jnp.exp(q) * (q - p - value[..., None])
        return (jnp.exp(p) * (p - q)).sum(-1), jnp.exp(q) - jnp.exp(p)

    def some(p, q):
        q, back = jax.vjp(lambda q: unembed(lm, q), q)
        p = unembed(lm, p)
        value, slopes = lax.platform_dependent(p, q, cpu=partial(_by_rows, slope), default=slope)
        return value, *back(slopes)

    return _in_chunks(some, chunk, original, substituted)


def _backward(chunk: int, reverse: bool, slopes, g):
    del chunk, reverse
    return None, None, slopes * g[:, None]


_kl_of_streams.defvjp(_forward, _backward)


def _in_chunks(function, chunk: int, *streams):
    """function(*parts) of `chunk` rows of streams [N, d] at a time."""
    n, d = streams[0].shape
    chunk = min(chunk, n)
    # Rows of zeros fill the last chunk.
    parts = [jnp.pad(a, ((0, -n % chunk), (0, 0))).reshape(-1, chunk, d) for a in streams]
    out = lax.map(lambda part: function(*part), parts)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], out)


def _by_rows(slope, p, q):
    """slope(p, q) of [N, V], some rows after the other: they stay in the caches, and the result takes q's place."""
    N, V = q.shape
    rows = max(rows for rows in range(1, N + 1) if N % rows == 0 and rows <= max(1, CACHED // V))

    def step(i, done):
        q = done[1]
        part = lambda a: lax.dynamic_slice_in_dim(a, i * rows, rows)
        new = slope(part(p), part(q))
        return tuple(lax.dynamic_update_slice_in_dim(a, b, i * rows, 0) for a, b in zip(done, new, strict=True))

    return lax.fori_loop(0, N // rows, step, (q[:, 0], q))
