"""TopK: keep the k largest pre-activations of each token, then ReLU (Gao et al. 2024, sec. 2.3).

The ReLU makes latents non-negative if a token has fewer than k positive pre-activations, so L0 can be below k.
"""

from dataclasses import replace

import jax

from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.support import Support


def _support(top, view):
    pre, indices = top(view.spec.k)
    return Support(pre, indices, view.layout.topk_mask(pre, view.k, view.most))


TYPE = ActivationFunction(
    value=lambda preacts, options: jax.nn.relu(preacts.pre),
    support=_support,
    slots=lambda n, k, training: k,
    at_most_k=True,
    value_is_preact=True,
)

# The k largest pre-activations as they are, so that values may be negative.
WITHOUT_RELU = replace(TYPE, value=lambda preacts, options: preacts.pre)
