"""What happens to each token before the encoder and is undone after the decoder (Gao et al. 2024, sec. 2.1).

unit_norm   subtract the token's mean over d, divide by its L2 norm (the paper)
ln_std      subtract the mean, divide by the unbiased standard deviation plus 1e-5; undone without the 1e-5
            (the code released with the paper; its checkpoints need it)
norm        divide by the L2 norm and multiply by sqrt(d), the mean as it is (SAELens's constant_norm_rescale)
none        nothing

The input of a crosscoder is several activations of one width side by side, its sections: each has a mean and a scale of
its own.
"""

from typing import Literal

import jax.numpy as jnp

from jaxsae.errors import BadInput

Normalise = Literal["unit_norm", "ln_std", "norm", "none"]


def normalise(x, kind: str, sections: int = 1):
    """Tokens x [..., d] -> (normalised x [..., d], mean [...], scale [...]).

    With several `sections` each is normalised by itself: mean and scale [..., sections].
    """
    if sections > 1:
        parts, mean, scale = normalise(x.reshape(*x.shape[:-1], sections, -1), kind)
        return parts.reshape(x.shape), mean, scale
    if kind == "none":
        return x, jnp.zeros_like(x, shape=x.shape[:-1]), jnp.ones_like(x, shape=x.shape[:-1])
    if kind == "norm":
        scale = jnp.sqrt((x * x).mean(-1))
        return x / jnp.where(scale > 0, scale, 1)[..., None], jnp.zeros_like(scale), scale
    mean = x.mean(-1)
    x = x - mean[..., None]
    if kind == "unit_norm":
        scale = jnp.sqrt((x * x).sum(-1))
        # A constant token has no direction: it becomes zero instead of NaN.
        return x / jnp.where(scale > 0, scale, 1)[..., None], mean, scale
    if kind == "ln_std":
        scale = jnp.sqrt((x * x).sum(-1) / (x.shape[-1] - 1))
        return x / (scale + 1e-5)[..., None], mean, scale
    raise BadInput(f"unknown normalisation {kind!r}: allowed are {', '.join(Normalise.__args__)}")


def denormalise(x, mean, scale):
    """Back to the units of the input: x [..., d], mean and scale [...] (of sections: [..., S]) -> [..., d]."""
    if mean.ndim == x.ndim:
        return denormalise(x.reshape(*mean.shape, -1), mean, scale).reshape(x.shape)
    return x * scale[..., None] + mean[..., None]


def normalise_pair(arrays, kind: str, sections: int = 1, scale_out=None):
    """(x, y, mean [...], scale [...]) of tokens (x,), where y is x, or of (x, y): normalised, and what undoes it for y.

    What should come out of a transcoder is divided by `scale_out`, one number for all tokens: only x says what a coder
    knows of a token. (If `scale_out` is None, each token of y is normalised by itself.)
    """
    x, mean, scale = normalise(arrays[0], kind, sections)
    if scale_out is not None:
        one = jnp.ones_like(mean)
        return x, arrays[1] / scale_out if len(arrays) > 1 else None, 0 * one, scale_out * one
    return (x, x, mean, scale) if len(arrays) == 1 else (x, *normalise(arrays[1], kind, sections))


def variance(x):
    """Variance of tokens x [..., d] around their mean, a scalar: mean over tokens and d."""
    return jnp.mean((x - x.mean(tuple(range(x.ndim - 1)))) ** 2)
