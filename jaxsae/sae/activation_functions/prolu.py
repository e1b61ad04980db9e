"""ProLU: m where m > 0 and m + b > 0, for m = W_enc (x - b_dec), b = b_enc (Taggart 2024; Gao et al. 2024, sec. 5.2).

The bias is a threshold that the value does not contain, so it needs a gradient by surrogate: that of ReLU, or one that
follows from a straight-through step.
"""

import jax
import jax.numpy as jnp

from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.activation_functions.penalties import NORMS


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


def _family(function, rate=1.0):
    def value(preacts, options):
        b = jnp.broadcast_to(preacts.b_enc, preacts.pre.shape)
        return function(preacts.pre - b, b)

    return ActivationFunction(value=value, penalties=NORMS, rate=rate)


RELU, STE = _family(prolu_relu), _family(prolu_ste, rate=0.5)
