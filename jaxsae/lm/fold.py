"""TransformerLens's weight processing: the steps that families share (Braun et al. 2024 trained on processed models).

The gain and bias of every norm are folded into what reads it, and what writes to the residual stream is centred. The
softmax outputs stay the same; the stream loses its mean over d at every hook point. Which arrays read and which write
is the family's to say, in its record's `fold`.
"""

import jax.numpy as jnp

from jaxsae.precision import matmul


def read_through(norm, dense):
    """Kernel [d, m] and bias [m] of a layer that reads a LayerNorm, with gain, bias and centring folded in."""
    W, b = dense["kernel"], dense["bias"]
    b = b + matmul(norm["bias"], W)
    W = norm["scale"][:, None] * W
    return W - W.mean(0), b


def centre(x):
    """`x` [..., d] less its mean over d."""
    return x - x.mean(-1, keepdims=True)


def plain(norm):
    """A LayerNorm without gain and bias."""
    return {"scale": jnp.ones_like(norm["scale"]), "bias": jnp.zeros_like(norm["bias"])}
