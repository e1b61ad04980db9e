"""JumpReLU: z where z > theta, with a threshold of its own for each latent (Rajamanoharan et al. 2024).

A threshold gets gradient from pre-activations close to it only, as if the step were a ramp of width `bandwidth`.
Thresholds are positive, as exponentials.
"""

import jax
import jax.numpy as jnp

from jaxsae.sae.activations.interface import Activation
from jaxsae.sae.activations.penalties import threshold, window

INITIAL = 0.001
# Adam moves the logarithm of a threshold by the learning rate at most: without this factor thresholds would not keep
# up with weights that learn what they are for, nor rise from INITIAL before a short run is over.
RATE = 30.0


@jax.custom_vjp
def jump(z, theta, bandwidth):
    """z where z > theta, else 0; z and theta [B, c]."""
    return jnp.where(z > theta, z, 0)


jump.defvjp(
    lambda z, theta, bandwidth: (jump(z, theta, bandwidth), (z, theta, bandwidth)),
    lambda r, g: (jnp.where(r[0] > r[1], g, 0), -r[1] * window(*r).astype(g.dtype) * g, None),
)


def _above(theta):
    return {"log_threshold": jnp.log(theta)}


ACTIVATION = Activation(
    value=lambda slots, terms: jump(slots.p, threshold(slots), terms.bandwidth),
    init=lambda key, n, dtype: _above(jnp.full(n, INITIAL, dtype)),
    above=_above,
    penalties=("l0", "tanh", "l1"),
    rates={"log_threshold": RATE},
    plain=True,
)
