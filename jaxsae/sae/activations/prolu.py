"""ProLU: m where m > 0 and m + b > 0, for m = W_enc (x - b_dec), b = b_enc (Taggart 2024; Gao et al. 2024, sec. 5.2).

The bias is a threshold that the value does not contain, so it needs a gradient by surrogate: that of ReLU, or one that
follows from a straight-through step.
"""

import jax
import jax.numpy as jnp

from jaxsae.sae.activations.interface import Activation


@jax.custom_vjp
def prolu_relu(m, b):
    """m [B, c] where m > 0 and m + b > 0, else 0; the bias b [B, c] gets the gradient of ReLU's."""
    return jnp.where((m > 0) & (m + b > 0), m, 0)


@jax.custom_vjp
def prolu_ste(m, b):
    """The same; gradients (1 + m) to m and m to b, where it is not 0."""
    return prolu_relu(m, b)


def _forward(m, b):
    return prolu_relu(m, b), (m, (m > 0) & (m + b > 0))


prolu_relu.defvjp(_forward, lambda r, g: (jnp.where(r[1], g, 0), jnp.where(r[1], g, 0)))
prolu_ste.defvjp(_forward, lambda r, g: (jnp.where(r[1], (1 + r[0]) * g, 0), jnp.where(r[1], r[0] * g, 0)))


def _activation(function):
    def value(slots, terms):
        b = jnp.broadcast_to(slots.b_enc, slots.p.shape)
        return function(slots.p - b, b)

    return Activation(value=value, penalties=("l1", "lp", "tanh"))


RELU, STE = _activation(prolu_relu), _activation(prolu_ste)
