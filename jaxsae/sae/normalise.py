"""What happens to each token before the encoder and is undone after the decoder (Gao et al. 2024, sec. 2.1).

unit_norm   subtract the token's mean over d, divide by its L2 norm (the paper)
ln_std      subtract the mean, divide by the unbiased standard deviation plus 1e-5; undone without the 1e-5
            (the code released with the paper; its checkpoints need it)
none        nothing
"""

from typing import Literal

import jax.numpy as jnp

from jaxsae.errors import BadInput

Normalise = Literal["unit_norm", "ln_std", "none"]


def normalise(x, kind: str):
    """Tokens x [..., d] -> (normalised x [..., d], mean [...], scale [...])."""
    if kind == "none":
        return x, jnp.zeros_like(x, shape=x.shape[:-1]), jnp.ones_like(x, shape=x.shape[:-1])
    mean = x.mean(-1)
    x = x - mean[..., None]
    if kind == "unit_norm":
        scale = jnp.sqrt((x * x).sum(-1))
        # A constant token has no direction: it becomes zero instead of NaN.
        return x / jnp.where(scale > 0, scale, 1)[..., None], mean, scale
    if kind == "ln_std":
        scale = jnp.sqrt((x * x).sum(-1) / (x.shape[-1] - 1))
        return x / (scale + 1e-5)[..., None], mean, scale
    raise BadInput(f"unknown normalisation {kind!r}: allowed are unit_norm, ln_std, none")


def denormalise(x, mean, scale):
    """Back to the units of the input: x [..., d], mean [...], scale [...] -> [..., d]."""
    return x * scale[..., None] + mean[..., None]


def variance(x):
    """Variance of tokens x [..., d] around their mean, a scalar: mean over tokens and d."""
    return jnp.mean((x - x.mean(tuple(range(x.ndim - 1)))) ** 2)
