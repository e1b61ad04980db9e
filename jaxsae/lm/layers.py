"""Layers that families share, as functions of their parameters. B sequences, T tokens, D width of the input."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import Precision, matmul

# By Hugging Face's names.
ACTIVATIONS = {
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def dense(p, x, products: Precision = "float32"):
    """x [..., D] times the kernel [D, M] of `p`, plus its bias [M] if it has one: [..., M]."""
    y = matmul(x, p["kernel"], products)
    return y + p["bias"] if "bias" in p else y


def rms_norm(p, x, eps: float, offset: float = 0.0):
    """x [..., D] over its root mean square, times the gain [D] of `p` plus `offset` (Zhang & Sennrich 2019)."""
    # The offset is added after the cast: in bfloat16 the sum would lose the gain's last digits.
    gain = p["gain"].astype(x.dtype) + offset
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps) * gain


def layer_norm(p, x, eps: float):
    """x [..., D] less its mean, over its standard deviation, times the `scale` [D] of `p`, plus its `bias` [D]."""
    x = x - x.mean(-1, keepdims=True)
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def embed(p, tokens, scaled: bool = False):
    """Rows [B, T, D] of the `embedding` [V, D] of `p`, in float32 at least; `scaled`: times the square root of D.

    Transformers rounds that root to the type of the weights, so it is rounded to theirs here.
    """
    table = p["embedding"]
    x = table[tokens].astype(jnp.promote_types(table.dtype, jnp.float32))
    return x * jnp.asarray(table.shape[1] ** 0.5, table.dtype).astype(x.dtype) if scaled else x


def soft_cap(x, cap: float | None):
    """cap tanh(x / cap): between -cap and cap, and near x where x is small. None: x itself."""
    return x if cap is None else cap * jnp.tanh(x / cap)
