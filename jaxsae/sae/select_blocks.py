"""The k largest pre-activations without all of them in memory. B tokens, d width, n latents.

They are made in blocks of latents, and the k largest so far are carried from block to block: the same choice as from
the whole, bit for bit.
"""

import jax.numpy as jnp
from jax import lax

from jaxsae.precision import Precision, times_rows


def largest_in_blocks(W, b, x, k: int, block: int, precision: Precision):
    """The k largest of x W^T + b and their indices, both [B, k], `block` latents at a time; ties to lower indices."""
    n, tokens = len(b), len(x)

    def merge(best, t):
        # The last block overlaps its neighbour; the overlap is masked so that no latent counts twice.
        start = jnp.minimum(t * block, n - block)
        part = lambda a: lax.dynamic_slice_in_dim(a, start, block)
        z = times_rows(x, part(W), precision) + part(b)
        z = jnp.where(start + jnp.arange(block) >= t * block, z, -jnp.inf)
        v, i = lax.top_k(z, min(k, block))
        # Earlier latents come first, so ties go to them.
        v, at = lax.top_k(jnp.concatenate([best[0], v], 1), k)
        i = jnp.take_along_axis(jnp.concatenate([best[1], i + start], 1), at, 1)
        return (v, i), None

    values = jnp.full_like(x, -jnp.inf, shape=(tokens, k))
    indices = jnp.zeros_like(values, jnp.int32)
    return lax.scan(merge, (values, indices), jnp.arange(-(-n // block), dtype=jnp.int32))[0]
