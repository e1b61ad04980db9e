"""Which latents a token may use: the one dense product of a step, and its k largest. B tokens, d width, n latents.

The pre-activations [B, n] only choose, so they carry no gradient. Where they would take more memory than allowed they
are made in blocks of latents, and the k largest so far are carried from block to block: the same choice, bit for bit.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax

from jaxsae.precision import Products, times_rows
from jaxsae.sae import activations
from jaxsae.sae.activations.interface import Support
from jaxsae.sae.layout import ALONE, Layout
from jaxsae.sae.struct import SAE

# Blocks are multiples of this many latents, which suits the tiles of every platform.
TILE = 128


@dataclass(frozen=True)
class Selection:
    """How latents are chosen: precision of the product, and bytes per device that its result may take."""

    products: Products = "float32"
    memory: int = 1 << 30


EXACT = Selection()


def bias(sae: SAE):
    """What the encoder subtracts from x, [d]."""
    return sae.b_dec if sae.spec.subtract_b_dec else jnp.zeros_like(sae.b_dec)


def support(sae: SAE, x, layout: Layout = ALONE, how: Selection = EXACT, training: bool = False) -> Support | None:
    """The support of normalised x [B, d] among this shard's latents, without gradient; None for a dense family."""
    choose = activations.get(sae.spec.activation).support
    if choose is None:
        return None
    sae, x = lax.stop_gradient((sae, x))
    weights = layout.vary(sae.W_enc, sae.b_enc, x - bias(sae))
    top = lambda k: largest(*weights, min(k, sae.n), how)
    return choose(top, sae.extra, sae.spec, layout, training)


def largest(W, b, x, k: int, how: Selection):
    """The k largest of x W^T + b and their indices, both [B, k]: W [n, d], b [n], x [B, d].

    Equal values go to the lower index, as in `lax.top_k`.
    """
    n, tokens = len(b), len(x)
    block = max(TILE, how.memory // (x.dtype.itemsize * tokens) // TILE * TILE)
    if block >= n:
        return lax.top_k(times_rows(x, W, how.products) + b, k)

    def merge(best, t):
        # The last block is moved back to end with the last latent; what another block had does not count again.
        start = jnp.minimum(t * block, n - block)
        part = lambda a: lax.dynamic_slice_in_dim(a, start, block)
        z = times_rows(x, part(W), how.products) + part(b)
        z = jnp.where(start + jnp.arange(block) >= t * block, z, -jnp.inf)
        v, i = lax.top_k(z, min(k, block))
        # Earlier latents come first, so ties go to them.
        v, at = lax.top_k(jnp.concatenate([best[0], v], 1), k)
        i = jnp.take_along_axis(jnp.concatenate([best[1], i + start], 1), at, 1)
        return (v, i), None

    nothing = jnp.full_like(x, -jnp.inf, shape=(tokens, k))
    none = jnp.zeros_like(nothing, jnp.int32)
    return lax.scan(merge, (nothing, none), jnp.arange(-(-n // block), dtype=jnp.int32))[0]
