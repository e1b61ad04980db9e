"""Encode and decode, for people: raw units, any leading axes, no mesh. d width, n latents, c slots of a code."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.precision import Precision
from jaxsae.sae import activation_functions
from jaxsae.sae.forward import preacts_of, reconstruct, skip_of, values_of
from jaxsae.sae.normalise import denormalise, normalise_pair
from jaxsae.sae.select import Selection, support
from jaxsae.sae.support import Support
from jaxsae.sae.types import SAE, Code


def encode(sae: SAE, x, select: Precision = "float32") -> Code:
    """The code of activations x [..., d] in the units of the language model; of a crosscoder [..., sections d].

    It has k slots if the activation function never uses more, else as many as the largest L0 of all tokens. (That is
    not known inside jit: there only families with k slots can be encoded.)

        code = jaxsae.encode(sae, x)        # values and indices [..., c], mean and scale [...]
        xhat = jaxsae.decode(sae, code)     # [..., d]
    """
    code = _encode(sae, x, select)
    if activation_functions.get(sae.spec.activation).at_most_k:
        return code
    most = max(1, int((code.values != 0).sum(-1).max()))
    v, at = lax.top_k(code.values, most)
    return replace(code, values=v, indices=jnp.where(v != 0, jnp.take_along_axis(code.indices, at, -1), 0))


@partial(jax.jit, static_argnames="select")
def _encode(sae: SAE, x, select: Precision) -> Code:
    shape = x.shape[:-1]
    rows = (x.reshape(-1, x.shape[-1]),)
    x, _, mean, scale = normalise_pair(rows, sae.spec.normalise, sae.spec.sections, sae.scale_out)
    # Values are computed anew, so that they do not depend on how latents were chosen.
    chosen = support(sae, x, selection=Selection(select)).selected_with(exact=False)
    v = values_of(sae, preacts_of(sae, x, chosen), chosen)
    # Slots that the activation function emptied are unused too.
    i = jnp.where(v != 0, jnp.broadcast_to(chosen.numbers(sae.n), v.shape), 0)
    in_shape = lambda a: None if a is None else a.reshape(*shape, *a.shape[1:])
    return Code(*map(in_shape, (v, i, mean, scale, skip_of(sae, x))))


@jax.jit
def decode(sae: SAE, code: Code):
    """The reconstruction [..., d] of a code, in the units of the language model; of a transcoder, its output."""
    shape, flat = code.values.shape[:-1], lambda a: a.reshape(-1, a.shape[-1])
    v, i = flat(code.values), flat(code.indices)
    skip = None if code.skip is None else flat(code.skip)
    x = reconstruct(sae.as_used(), v, Support(v, i, jnp.ones_like(v, bool)), skip=skip)
    return denormalise(x.reshape(*shape, -1), code.mean, code.scale)


@partial(jax.jit, static_argnames="n")
def dense(code: Code, n: int):
    """Latents [..., n] of a code."""
    flat = lambda a: a.reshape(-1, a.shape[-1])
    v, i = flat(code.values), flat(code.indices)
    z = jnp.zeros((len(v), n), v.dtype).at[jnp.arange(len(v))[:, None], i].add(v)
    return z.reshape(*code.values.shape[:-1], n)
