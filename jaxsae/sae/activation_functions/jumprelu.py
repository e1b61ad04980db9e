"""JumpReLU: z where z > theta, with a threshold of its own for each latent (Rajamanoharan et al. 2024).

A threshold gets gradient only from pre-activations close to it, as if the step were a ramp of width `bandwidth`.
Thresholds are positive: their logarithms are what is trained. Autoencoders of other libraries have `threshold` instead
of `log_threshold`, the numbers that they were saved with; negative ones mean 0.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.errors import BadInput
from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.activation_functions.options import Penalty
from jaxsae.sae.activation_functions.penalties import L1, TANH


@dataclass(frozen=True)
class Config:
    bandwidth: float = 0.001
    """Width of the straight-through gradients of thresholds."""
    initial_threshold: float = 0.001
    """First threshold of all latents."""
    threshold_lr: float = 30.0
    """Factor on the learning rate of thresholds. Adam moves the logarithm of a threshold by the learning rate at most:
    with 1, thresholds would not keep up with the weights, nor rise before a short run is over."""

    def __post_init__(self):
        for name in ("bandwidth", "initial_threshold", "threshold_lr"):
            if not 0 < getattr(self, name) < math.inf:
                flag = f"--sae.jumprelu.{name.replace('_', '-')}"
                raise BadInput(f"{flag} is {getattr(self, name)}: give a positive number")


def threshold(preacts):
    """The thresholds, at least 0, broadcast to the pre-activations [B, c]."""
    return jnp.broadcast_to(thresholds(preacts.extra), preacts.pre.shape)


def thresholds(extra: dict):
    """The thresholds, at least 0, of the arrays of this family."""
    if "threshold" in extra:
        return jnp.maximum(extra["threshold"], 0)
    return jnp.exp(extra["log_threshold"])


def window(z, theta, bandwidth):
    """1 / bandwidth within half of it around the threshold, else 0: the kernel of the straight-through gradients."""
    return (jnp.abs(z - theta) < bandwidth / 2) / bandwidth


@jax.custom_vjp
def jump(z, theta, bandwidth):
    """z where z > theta, else 0; z and theta [B, c]."""
    return jnp.where(z > theta, z, 0)


jump.defvjp(
    lambda z, theta, bandwidth: (jump(z, theta, bandwidth), (z, theta, bandwidth)),
    lambda r, g: (jnp.where(r[0] > r[1], g, 0), -r[1] * window(*r).astype(g.dtype) * g, None),
)


@jax.custom_vjp
def active(z, theta, bandwidth):
    """1 where z > theta; the gradient is that of a smoothed step, and reaches theta alone."""
    return (z > theta).astype(z.dtype)


active.defvjp(
    lambda z, theta, bandwidth: (active(z, theta, bandwidth), (z, theta, bandwidth)),
    lambda r, g: (jnp.zeros_like(g), -window(*r).astype(g.dtype) * g, None),
)


def _from_threshold(theta):
    return {"log_threshold": jnp.log(theta)}


def _value(preacts, options):
    return jump(preacts.pre, threshold(preacts), options.own.bandwidth)


def _l0(v, preacts, options):
    return active(preacts.pre, threshold(preacts), options.own.bandwidth)


TYPE = ActivationFunction(
    value=_value,
    init=lambda key, n, dtype, own: _from_threshold(jnp.full(n, own.initial_threshold, dtype)),
    from_threshold=_from_threshold,
    penalties={"l0": Penalty(_l0, counts=True, steers=True), "tanh": TANH, "l1": L1},
    rate=0.4,
    lr_multipliers=lambda own: {"log_threshold": own.threshold_lr},
    value_is_preact=True,
    Config=Config,
)
