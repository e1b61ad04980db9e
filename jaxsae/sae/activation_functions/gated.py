"""Gated: one affine map says which latents are active, another of the same directions how much (Rajamanoharan et al.
2024, arXiv 2404.16014).

With u = W_enc (x - b_dec): the gate is u + b_enc > 0, the value ReLU(e^r u + b_mag). The gate learns from the penalty
on ReLU(u + b_enc), and from reconstructing the input with these numbers and a decoder that gets no gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.activation_functions.options import Penalty


def _value(preacts, options):
    u = preacts.pre - preacts.b_enc
    magnitude = jax.nn.relu(jnp.exp(preacts.extra["r_mag"]) * u + preacts.extra["b_mag"])
    return jnp.where(preacts.pre > 0, magnitude, 0)


def _gate_values(preacts):
    return jax.nn.relu(preacts.pre)


def _gate_penalty(v, preacts, options):
    # The decoder's norms carry no gradient, as in the auxiliary reconstruction: rows would shrink with nothing to hold
    # them.
    return _gate_values(preacts) * lax.stop_gradient(preacts.norms)


TYPE = ActivationFunction(
    value=_value,
    init=lambda key, n, dtype, own: {"r_mag": jnp.zeros(n, dtype), "b_mag": jnp.zeros(n, dtype)},
    gate_values=_gate_values,
    penalties={"gate": Penalty(_gate_penalty)},
)
