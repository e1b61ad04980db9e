"""GroupMax: of each of k groups of neighbouring latents the largest is kept, then ReLU (EleutherAI/sparsify).

B tokens, n latents of a shard.
"""

import jax
import jax.numpy as jnp

from jaxsae.errors import BadInput
from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.support import Support


def _support(top, view):
    pre, indices = top(ALL)
    (tokens, n), shards = pre.shape, view.layout.shards()
    groups = view.spec.k // shards
    if groups * shards != view.spec.k or n % groups:
        raise BadInput(f"groupmax: {n * shards} latents on {shards} devices are not {view.spec.k} groups of one size")
    rows = jnp.arange(tokens)[:, None]
    z = jnp.zeros_like(pre).at[rows, indices].set(pre).reshape(tokens, groups, n // groups)
    first = jnp.arange(groups, dtype=jnp.int32) * (n // groups)
    return Support(z.max(-1), z.argmax(-1).astype(jnp.int32) + first, jnp.ones_like(pre[:, :groups], bool))


# More than there are latents.
ALL = 1 << 30

TYPE = ActivationFunction(
    value=lambda preacts, options: jax.nn.relu(preacts.pre),
    support=_support,
    slots=lambda n, k, training: k,
    at_most_k=True,
)
