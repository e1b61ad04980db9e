"""Gated: one affine map says which latents are active, another of the same directions how much (Rajamanoharan et al.
2024, arXiv 2404.16014).

With u = W_enc (x - b_dec): the gate is u + b_enc > 0, the value ReLU(e^r u + b_mag). The gate learns from the penalty
on ReLU(u + b_enc), and from reconstructing the input with these numbers and a decoder that gets no gradient.
"""

import jax
import jax.numpy as jnp

from jaxsae.sae.activations.interface import Activation


def _value(slots, terms):
    u = slots.p - slots.b_enc
    return jnp.where(slots.p > 0, jax.nn.relu(jnp.exp(slots.extra["r_mag"]) * u + slots.extra["b_mag"]), 0)


ACTIVATION = Activation(
    value=_value,
    init=lambda key, n, dtype: {"r_mag": jnp.zeros(n, dtype), "b_mag": jnp.zeros(n, dtype)},
    frozen=lambda slots: jax.nn.relu(slots.p),
    penalties=("gate",),
)
