"""Initial weights from a sample of activations (Gao et al. 2024, sec. 2.5 and app. A.1, A.6).

R rows of the sample, d width, n latents. Everything is in normalised units.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.sae import activations
from jaxsae.sae.struct import SAE, Spec


def geometric_median(x, steps: int = 100, tolerance: float = 1e-5):
    """The point with the least sum of distances to the rows of x [R, d], by Weiszfeld's algorithm from the mean."""

    def move(carry):
        median, _, step = carry
        distance = jnp.sqrt(((x - median) ** 2).sum(1))
        # A row that the median sits on would weigh infinitely much.
        weight = 1 / jnp.maximum(distance, jnp.finfo(x.dtype).tiny ** 0.5)
        moved = (weight[:, None] * x).sum(0) / weight.sum()
        return moved, jnp.sqrt(((moved - median) ** 2).sum()), step + 1

    go_on = lambda carry: (carry[1] >= tolerance) & (carry[2] < steps)
    mean = x.mean(0)
    return lax.while_loop(go_on, move, (mean, jnp.full_like(mean, jnp.inf, shape=()), 0))[0]


def mse_scale(x):
    """1 / variance of the rows of x [R, d] over B and d: with it, predicting the mean has loss 1."""
    return 1 / jnp.mean((x - x.mean(0)) ** 2)


def directions(key, n: int, d: int, dtype=jnp.float32, sharding=None):
    """n uniformly random unit vectors [n, d], the same for every sharding."""
    W = jax.random.normal(key, (n, d), dtype, out_sharding=sharding)
    return W / jnp.sqrt((W * W).sum(-1, keepdims=True))


def initialise(key, spec: Spec, n: int, b_dec, reconstruct: Callable, sharding=None) -> SAE:
    """An autoencoder with b_dec [d], unit-norm decoder rows in random directions, and the encoder parallel to it.

    The encoder is scaled so that random unit vectors around b_dec come back, on average, with norm 1.
    `reconstruct(sae, x)` runs the autoencoder on x [256, d]; `sharding` is that of an array [n, d].
    """
    d = len(b_dec)
    rows_key, extra_key, probe_key = jax.random.split(key, 3)
    W = directions(rows_key, n, d, b_dec.dtype, sharding)
    sae = SAE(W, jnp.zeros_like(W[:, 0]), W, b_dec, spec, activations.get(spec.activation).init(extra_key, n))
    probe = directions(probe_key, 256, d, b_dec.dtype) + b_dec
    norm = jnp.sqrt(((reconstruct(sae, probe) - b_dec) ** 2).sum(1)).mean()
    return sae.replace(W_enc=sae.W_enc / norm)
