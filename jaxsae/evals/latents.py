"""Latents and reconstructions of many tokens, inside jit, for every family. N tokens, d width, n latents, c slots.

Activations are in the units of the language model. Tokens go in chunks, so [N, n] is never made. No mesh: the
autoencoder lies on one device.
"""

import jax.numpy as jnp
from jax import lax

from jaxsae.sae import forward
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.select import support
from jaxsae.sae.struct import SAE

# Tokens whose pre-activations exist at once.
CHUNK = 1024


def encode(sae: SAE, x):
    """x [N, d] -> values [N, c], their support (None: all latents, c = n), and the mean and scale [N] of each token."""
    x, mean, scale = normalise(x, sae.spec.normalise)
    chosen = support(sae, x)
    return forward.values(sae, forward.slots_of(sae, x, chosen), chosen), chosen, mean, scale


def reconstruct(sae: SAE, x):
    """The reconstruction [..., d] of x [..., d]."""

    def chunk(x):
        v, chosen, mean, scale = encode(sae, x)
        return denormalise(forward.reconstruct(forward.with_unit_decoder(sae), v, chosen), mean, scale)

    return _by_chunks(chunk, x.reshape(-1, x.shape[-1])).reshape(x.shape)


def dense(sae: SAE, x):
    """Latents [N, n] of x [N, d]: for few tokens."""
    v, chosen, _, _ = encode(sae, x)
    if chosen is None:
        return v
    return jnp.zeros((len(v), sae.n), v.dtype).at[jnp.arange(len(v))[:, None], chosen.indices].add(v)


def columns(sae: SAE, x, latents):
    """The values [N, A] of some latents [A] on x [N, d], and the scale [N] by which what they write is multiplied."""
    scale = normalise(x, sae.spec.normalise)[2]
    return _by_chunks(lambda x: dense(sae, x)[:, latents], x), scale


def counts(sae: SAE, x, among):
    """On how many tokens of x [N, d], of those where `among` [N], each latent has a value other than 0: int32 [n]."""

    def add(count, part):
        x, among = part
        v, chosen, _, _ = encode(sae, x)
        active = ((v != 0) & among[:, None]).astype(jnp.int32)
        if chosen is None:
            return count + active.sum(0, dtype=jnp.int32), None
        return count.at[chosen.indices].add(active), None

    # Rows that fill up the last chunk are among none.
    return lax.scan(add, jnp.zeros(sae.n, jnp.int32), (_chunks(x), _chunks(among)))[0]


def _chunks(a):
    """Rows [N, ...] as [chunks, rows, ...], filled up with zeros."""
    rows = min(CHUNK, len(a))
    return jnp.pad(a, ((0, -len(a) % rows), *((0, 0),) * (a.ndim - 1))).reshape(-1, rows, *a.shape[1:])


def _by_chunks(f, x):
    """f(x) [N, ...] of x [N, d], where f looks at each row alone."""
    out = lax.map(f, _chunks(x))
    return out.reshape(out.shape[0] * out.shape[1], *out.shape[2:])[: len(x)]


def batches(tokens, size: int):
    """Contexts [b, T] in batches of `size`, and a rest."""
    return (jnp.asarray(tokens[start : start + size]) for start in range(0, len(tokens), size))
