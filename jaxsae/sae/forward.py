"""Encode and decode. B tokens, d width, n latents, c slots of a code.

`slots_of`, `values` and `reconstruct` work in normalised units on one shard (`layout` says of what); training calls
them inside shard_map. `encode`, `decode` and `dense` are for people: raw units, any leading axes, no mesh.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import Products, matmul
from jaxsae.sae import activations
from jaxsae.sae.activations.interface import PLAIN, Slots, Support, Terms
from jaxsae.sae.layout import ALONE, Layout
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.select import Selection, bias, support
from jaxsae.sae.sparse import decode as sparse_decode
from jaxsae.sae.sparse import preactivations
from jaxsae.sae.struct import SAE, Code


def slots_of(sae: SAE, x, chosen: Support | None, layout: Layout = ALONE, exact: bool = False) -> Slots:
    """Pre-activations of normalised x [B, d], with gradient, and what belongs to their latents, on this shard.

    Those of a support are computed from the weights, not taken from the selection (unless that was `exact`).
    """
    W, b, b_dec, x, chosen, extra = layout.vary(sae.W_enc, sae.b_enc, bias(sae), x, chosen, sae.extra)
    if chosen is None:
        # x carries no gradient of its own here, and b_dec's is a matrix-vector product.
        p = matmul(x, W.T) + (b - matmul(W, b_dec))
        return Slots(p, b, extra, _norms(sae, layout))
    known = chosen.z if exact else None
    p = preactivations(W, b, b_dec, chosen.indices, x, used(chosen.mask), known)
    return Slots(p, b[chosen.indices], {name: a[chosen.indices] for name, a in extra.items()}, 1)


def _norms(sae: SAE, layout: Layout):
    """Norms of the decoder's rows [n] where they are free, else 1."""
    if sae.spec.decoder != "free":
        return 1
    (W,) = layout.vary(sae.W_dec)
    return jnp.sqrt((W * W).sum(1))


def values(sae: SAE, slots: Slots, chosen: Support | None, terms: Terms = PLAIN):
    """Values [B, c] of a code; zero where a slot is not in use."""
    v = activations.get(sae.spec.activation).value(slots, terms)
    return v if chosen is None else jnp.where(chosen.mask, v, 0)


def reconstruct(sae: SAE, v, chosen: Support | None, layout: Layout = ALONE):
    """Normalised reconstruction [B, d] of values [B, c] of this shard's latents."""
    W, v, chosen = layout.vary(sae.W_dec, v, chosen)
    part = matmul(v, W) if chosen is None else sparse_decode(W, v, chosen.indices, used(chosen.mask))
    return layout.sum_latents(part) + sae.b_dec


def used(mask):
    """Slots behind which no token uses any: those in use come first."""
    return mask.sum(1, dtype=jnp.int32).max()


def with_unit_decoder(sae: SAE) -> SAE:
    """The autoencoder as it computes: its decoder's rows divided by their norms, if the spec wants that."""
    if sae.spec.decoder != "normalised":
        return sae
    norm = jnp.sqrt((sae.W_dec**2).sum(1, keepdims=True))
    return sae.replace(W_dec=sae.W_dec / jnp.maximum(norm, 1e-12))


def encode(sae: SAE, x, select: Products = "float32") -> Code:
    """The code of activations x [..., d] in the units of the language model.

    It has k slots where that is the activation function's number, else the largest L0 of all tokens (which cannot be
    known inside jit: there only those can be encoded that have k slots).
    """
    code = _encode(sae, x, select)
    if activations.get(sae.spec.activation).at_most_k:
        return code
    most = max(1, int((code.values != 0).sum(-1).max()))
    v, at = lax.top_k(code.values, most)
    return replace(code, values=v, indices=jnp.where(v != 0, jnp.take_along_axis(code.indices, at, -1), 0))


@partial(jax.jit, static_argnames="select")
def _encode(sae: SAE, x, select: Products) -> Code:
    shape = x.shape[:-1]
    x, mean, scale = normalise(x.reshape(-1, x.shape[-1]), sae.spec.normalise)
    chosen = support(sae, x, how=Selection(select))
    v = values(sae, slots_of(sae, x, chosen), chosen)
    i = jnp.broadcast_to(jnp.arange(sae.n, dtype=jnp.int32), v.shape) if chosen is None else chosen.indices
    # Slots that the activation function emptied are unused too.
    i = jnp.where(v != 0, i, 0)
    return Code(v.reshape(*shape, -1), i.reshape(*shape, -1), mean.reshape(shape), scale.reshape(shape))


@jax.jit
def decode(sae: SAE, code: Code):
    """The reconstruction [..., d] of a code, in the units of the language model."""
    flat = lambda a: a.reshape(-1, a.shape[-1])
    v, i = flat(code.values), flat(code.indices)
    x = reconstruct(with_unit_decoder(sae), v, Support(v, i, jnp.ones_like(v, bool)))
    return denormalise(x.reshape(*code.mean.shape, -1), code.mean, code.scale)


@partial(jax.jit, static_argnames="n")
def dense(code: Code, n: int):
    """Latents [..., n] of a code."""
    flat = lambda a: a.reshape(-1, a.shape[-1])
    v, i = flat(code.values), flat(code.indices)
    z = jnp.zeros((len(v), n), v.dtype).at[jnp.arange(len(v))[:, None], i].add(v)
    return z.reshape(*code.mean.shape, n)
