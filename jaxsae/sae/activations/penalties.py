"""Sparsity terms: what each latent of a token costs. B tokens, c slots.

`each(v, slots, terms)` [B, c] is summed over the latents, and `finish(total, terms)` [B] applied to the sum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax


@dataclass(frozen=True)
class Penalty:
    each: Callable
    finish: Callable = lambda total, terms: total


def _power(v, slots, terms):
    v = v * slots.norms
    # Where v is 0 the slope of v^p is infinite for p < 1: such latents get none, as in PyTorch's norm.
    return jnp.where(v > 0, jnp.where(v > 0, v, 1) ** terms.p, 0)


def _root(total, terms):
    return jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / terms.p), 0)


PENALTIES = {
    # |v|, weighted by the norm of the decoder's row where that is free (Conerly et al. 2024).
    "l1": Penalty(lambda v, slots, terms: v * slots.norms),
    # The p-norm, its root not removed (Braun et al. 2024, as in their code), weighted likewise.
    "lp": Penalty(_power, _root),
    # Bounded by 1 for each latent.
    "tanh": Penalty(lambda v, slots, terms: jnp.tanh(terms.tanh_scale * v * slots.norms)),
    # The number of latents, through jumprelu.py's straight-through gradient.
    "l0": Penalty(lambda v, slots, terms: active(slots.p, threshold(slots), terms.bandwidth)),
    # The gate's pre-activations (Rajamanoharan et al. 2024, Gated). The decoder is frozen as it is in their auxiliary
    # reconstruction, or its rows would shrink with nothing to hold them.
    "gate": Penalty(lambda v, slots, terms: jax.nn.relu(slots.p) * lax.stop_gradient(slots.norms)),
}


def threshold(slots):
    """The positive thresholds of JumpReLU, broadcast to its pre-activations."""
    return jnp.broadcast_to(jnp.exp(slots.extra["log_threshold"]), slots.p.shape)


def window(z, theta, bandwidth):
    """1 / bandwidth within half of it around the threshold, else 0: the kernel of the straight-through gradients."""
    return (jnp.abs(z - theta) < bandwidth / 2) / bandwidth


@jax.custom_vjp
def active(z, theta, bandwidth):
    """1 where z > theta; the gradient is that of a smoothed step, and reaches theta alone."""
    return (z > theta).astype(z.dtype)


active.defvjp(
    lambda z, theta, bandwidth: (active(z, theta, bandwidth), (z, theta, bandwidth)),
    lambda r, g: (jnp.zeros_like(g), -window(*r).astype(g.dtype) * g, None),
)
