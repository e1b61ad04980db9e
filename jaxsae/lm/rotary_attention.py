"""Attention with rotary embeddings and grouped queries, for every family that has them.

B sequences, T tokens, D width of the stream, H heads and G key-value heads of width K; H / G heads share one of those.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.lm.attention import attention, positions
from jaxsae.lm.layers import dense, rms_norm
from jaxsae.lm.rotary import Rotary, rotate
from jaxsae.precision import PRECISION, Precision


@dataclass(frozen=True)
class Attention:
    """The attention of a model, and what families and their config.json switch."""

    n_head: int
    n_kv_head: int
    head_dim: int
    rotary: Rotary
    # What products of queries and keys are multiplied by.
    scale: float
    # By layer, how many positions a token attends to, itself and those just before it (None: all). Empty: all, always.
    windows: tuple[int | None, ...] = ()
    # Of layers with a window (None: as the others).
    local_rotary: Rotary | None = None
    # Attention logits are soft-capped at it.
    cap: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    # Queries and keys are normalised, head by head, before they are turned.
    qk_norm: bool = False
    norm_eps: float = 1e-6
    gain_offset: float = 0.0

    @property
    def width(self) -> int:
        """Of the heads side by side, H K."""
        return self.n_head * self.head_dim


def heads(p, a: Attention, x, layer: int, mask, products: Precision):
    """The heads side by side, [B, T, H K], of the normalised stream x [B, T, D]; the output matrix reads them."""
    B, T, _ = x.shape
    q, k, v = (dense(p[name], x, products).reshape(B, T, -1, a.head_dim) for name in "qkv")
    if a.qk_norm:
        q, k = (rms_norm(p[f"{name}_norm"], y, a.norm_eps, a.gain_offset) for name, y in (("q", q), ("k", k)))
    window = a.windows[layer] if a.windows else None
    rotary = a.rotary if window is None or a.local_rotary is None else a.local_rotary
    q, k = (rotate(y, positions(mask, T), rotary) for y in (q, k))
    with jax.default_matmul_precision(PRECISION[products]):
        return attention(q, k, v, a.scale, window, mask, a.cap).reshape(B, T, a.width)


def weights(a: Attention, d_model: int) -> int:
    """How many weights its four matrices have."""
    return 2 * d_model * a.head_dim * (a.n_head + a.n_kv_head)


def constant_output(p, a: Attention):
    """What the biases [G K] of values add to the heads side by side, [H K]: a token's attention weights sum to one."""
    return jnp.repeat(p["v"]["bias"].reshape(a.n_kv_head, a.head_dim), a.n_head // a.n_kv_head, axis=0).reshape(-1)
