"""Causal attention with padding, for every family. B sequences, T positions, H heads, G heads of keys and values, K
width of a head.

A mask [B, T] is True at real tokens, and None if all are. Padding, wherever it is, does not show at real tokens: they
do not attend to it, and their positions do not count it.
"""

import jax
import jax.numpy as jnp

from jaxsae.lm.layers import soft_cap


def positions(mask, length: int):
    """The position of each of `length` tokens: how many real tokens come before it; [T], or [B, T] with a mask."""
    if mask is None:
        return jnp.arange(length)
    mask = jnp.asarray(mask, jnp.int32)
    return jnp.cumsum(mask, -1) - mask


def visible(length: int, window: int | None = None, mask=None):
    """What each token attends to: itself and the real tokens before it, of them all the last `window` (default: all).

    Returns bools [T, T], or [B, T, T] with a mask.
    """
    seen = jnp.tril(jnp.ones((length, length), bool))
    if mask is None:
        return seen if window is None else jnp.triu(seen, 1 - window)
    place = positions(mask, length)
    seen &= jnp.asarray(mask, bool)[:, None, :]
    if window is not None:
        seen &= place[:, :, None] - place[:, None, :] < window
    # Padding attends to itself too: a softmax over nothing would not be a number, and neither would its gradient.
    return seen | jnp.eye(length, dtype=bool)


def attention(q, k, v, scale: float, window: int | None = None, mask=None, cap: float | None = None):
    """Attention [B, T, H, K] of q [B, T, H, K] to k and v, over the last `window` tokens (default: all).

    k and v are [B, T, G, K]: each of their G heads serves H / G heads of q that lie side by side. With a `cap` the
    logits are soft-capped at it (layers.py).
    """
    T = q.shape[1]
    if q.dtype != jnp.float64 and cap is None:
        if mask is not None:
            return jax.nn.dot_product_attention(q, k, v, scale=scale, mask=visible(T, window, mask)[:, None])
        # JAX counts the positions before and after a token, and not the token itself.
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, local_window_size=local)
    # jax.nn.dot_product_attention has no cap, and takes its softmax in float32 whatever the input; float64 is asked for
    # to compare to more digits than that.
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[3])
    logits = soft_cap(jnp.einsum("btghk,bsgk->bghts", grouped, k) * scale, cap)
    seen = visible(T, window, mask)
    seen = seen if mask is None else seen[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf))
    return jnp.einsum("bghts,bsgk->btghk", weights, v).reshape(q.shape)
