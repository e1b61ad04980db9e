"""Encode and decode. B tokens, d width, n latents, c slots of a code.

`sparse_code` and `reconstruct` work in normalised units on one shard (`layout` says of what); training calls them
inside shard_map. `encode`, `decode` and `dense` are for people: raw units, any leading axes, no mesh.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import Products, matmul
from jaxsae.sae import activations
from jaxsae.sae.layout import ALONE, Layout
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.sparse import decode as sparse_decode
from jaxsae.sae.sparse import preactivations
from jaxsae.sae.struct import SAE, Code


def selection(sae: SAE, x, select: Products):
    """Pre-activations [B, n] of normalised x [B, d], without gradient: the one dense product of a step."""
    W, b, x, b_dec = (lax.stop_gradient(a) for a in (sae.W_enc, sae.b_enc, x, bias(sae)))
    return matmul(x - b_dec, W.T, select) + b


def bias(sae: SAE):
    """What the encoder subtracts from x, [d]."""
    return sae.b_dec if sae.spec.subtract_b_dec else jnp.zeros_like(sae.b_dec)


def sparse_code(sae: SAE, x, layout: Layout = ALONE, select: Products = "float32"):
    """Values and local indices [B, c] of this shard's active latents, for normalised x [B, d].

    `select` is the precision of the product that only chooses latents; the chosen values are computed again exactly,
    and they alone carry gradient. Dropped slots have value 0.
    """
    act = activations.get(sae.spec.activation)
    W, b, b_dec, x = layout.vary(sae.W_enc, sae.b_enc, bias(sae), x)
    i, mask = act.support(selection(sae, x, select), sae.extra, sae.spec, layout)
    v = act.value(preactivations(W, b, b_dec, i, x), sae.spec)
    return jnp.where(mask, v, 0), i


def reconstruct(sae: SAE, v, i, layout: Layout = ALONE):
    """Normalised reconstruction [B, d] of a code (values and local indices [B, c])."""
    W, v, i = layout.vary(sae.W_dec, v, i)
    return layout.sum_latents(sparse_decode(W, v, i)) + sae.b_dec


@partial(jax.jit, static_argnames="select")
def encode(sae: SAE, x, select: Products = "float32") -> Code:
    """The code of activations x [..., d] in the units of the language model."""
    shape = x.shape[:-1]
    x, mean, scale = normalise(x.reshape(-1, x.shape[-1]), sae.spec.normalise)
    v, i = sparse_code(sae, x, select=select)
    # Slots that the ReLU emptied are unused too.
    i = jnp.where(v != 0, i, 0)
    return Code(v.reshape(*shape, -1), i.reshape(*shape, -1), mean.reshape(shape), scale.reshape(shape))


@jax.jit
def decode(sae: SAE, code: Code):
    """The reconstruction [..., d] of a code, in the units of the language model."""
    flat = lambda a: a.reshape(-1, a.shape[-1])
    x = reconstruct(sae, flat(code.values), flat(code.indices))
    return denormalise(x.reshape(*code.mean.shape, -1), code.mean, code.scale)


@partial(jax.jit, static_argnames="n")
def dense(code: Code, n: int):
    """Latents [..., n] of a code."""
    flat = lambda a: a.reshape(-1, a.shape[-1])
    v, i = flat(code.values), flat(code.indices)
    z = jnp.zeros((len(v), n), v.dtype).at[jnp.arange(len(v))[:, None], i].add(v)
    return z.reshape(*code.mean.shape, n)
