"""Encode and decode. B tokens, d width, n latents, c slots of a code.

`sparse_code` and `reconstruct` work in normalised units on one shard (`layout` says of what); training calls them
inside shard_map. `encode`, `decode` and `dense` are for people: raw units, any leading axes, no mesh.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsae.precision import Products
from jaxsae.sae import activations
from jaxsae.sae.activations.interface import Support
from jaxsae.sae.layout import ALONE, Layout
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.select import Selection, bias, support
from jaxsae.sae.sparse import decode as sparse_decode
from jaxsae.sae.sparse import preactivations
from jaxsae.sae.struct import SAE, Code


def sparse_code(sae: SAE, x, chosen: Support, layout: Layout = ALONE, exact: bool = False):
    """Values [B, c] of this shard's chosen latents, for normalised x [B, d]; zero where a slot is not in use.

    They are computed from the weights, not taken from the selection (unless that was `exact`), and carry gradient.
    """
    W, b, b_dec, x, chosen = layout.vary(sae.W_enc, sae.b_enc, bias(sae), x, chosen)
    known = chosen.z if exact else None
    p = preactivations(W, b, b_dec, chosen.indices, x, _slots(chosen.mask), known)
    return jnp.where(chosen.mask, activations.get(sae.spec.activation).value(p, sae.spec), 0)


def reconstruct(sae: SAE, v, i, mask, layout: Layout = ALONE):
    """Normalised reconstruction [B, d] of a code: values, local indices and use of its slots, each [B, c]."""
    W, v, i = layout.vary(sae.W_dec, v, i)
    return layout.sum_latents(sparse_decode(W, v, i, _slots(mask))) + sae.b_dec


def _slots(mask):
    """Slots behind which no token uses any: those in use come first."""
    return mask.sum(1, dtype=jnp.int32).max()


@partial(jax.jit, static_argnames="select")
def encode(sae: SAE, x, select: Products = "float32") -> Code:
    """The code of activations x [..., d] in the units of the language model."""
    shape = x.shape[:-1]
    x, mean, scale = normalise(x.reshape(-1, x.shape[-1]), sae.spec.normalise)
    chosen = support(sae, x, how=Selection(select))
    v = sparse_code(sae, x, chosen)
    # Slots that the ReLU emptied are unused too.
    i = jnp.where(v != 0, chosen.indices, 0)
    return Code(v.reshape(*shape, -1), i.reshape(*shape, -1), mean.reshape(shape), scale.reshape(shape))


@jax.jit
def decode(sae: SAE, code: Code):
    """The reconstruction [..., d] of a code, in the units of the language model."""
    flat = lambda a: a.reshape(-1, a.shape[-1])
    v = flat(code.values)
    x = reconstruct(sae, v, flat(code.indices), jnp.ones_like(v, bool))
    return denormalise(x.reshape(*code.mean.shape, -1), code.mean, code.scale)


@partial(jax.jit, static_argnames="n")
def dense(code: Code, n: int):
    """Latents [..., n] of a code."""
    flat = lambda a: a.reshape(-1, a.shape[-1])
    v, i = flat(code.values), flat(code.indices)
    z = jnp.zeros((len(v), n), v.dtype).at[jnp.arange(len(v))[:, None], i].add(v)
    return z.reshape(*code.mean.shape, n)
