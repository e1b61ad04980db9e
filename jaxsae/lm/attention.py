"""Causal attention with padding, for every family. B sequences, T positions, H heads, K width of a head.

A mask [B, T] is True at real tokens, and None if all are. Padding, wherever it is, does not show at real tokens: they
do not attend to it, and their positions do not count it.
"""

import jax
import jax.numpy as jnp


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


def attention(q, k, v, scale: float, window: int | None = None, mask=None):
    """Attention [B, T, H, K] of q to k and v, [B, T, H, K] each, over the last `window` tokens (default: all)."""
    T = q.shape[1]
    if q.dtype != jnp.float64:
        if mask is not None:
            return jax.nn.dot_product_attention(q, k, v, scale=scale, mask=visible(T, window, mask)[:, None])
        # JAX counts the positions before and after a token, and not the token itself.
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, local_window_size=local)
    # jax.nn.dot_product_attention takes its softmax in float32 whatever the input; float64 is asked for to compare
    # to more digits than that.
    logits = jnp.einsum("bthd,bshd->bhts", q, k) * scale
    seen = jnp.expand_dims(visible(T, window, mask), -3)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), v)
