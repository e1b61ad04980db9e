"""Multi-TopK: TopK trained at k and at 4k, so that every k' in between is good too (Gao et al. 2024, sec. 5.3).

The loss is L(k) + L(4k) / 8. As an autoencoder it is TopK with k.
"""

import jax

from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.support import Support

WIDER, WEIGHT = 4, 1 / 8


def _slots(n, k, training):
    return min(n, WIDER * k) if training else k


def _support(top, view):
    k = WIDER * view.spec.k if view.training else view.spec.k
    pre, indices = top(k)
    return Support(pre, indices, view.layout.topk_mask(pre, k))


def _views(support, spec, layout):
    return layout.topk_mask(support.pre, spec.k), support.mask


TYPE = ActivationFunction(
    value=lambda preacts, options: jax.nn.relu(preacts.pre),
    support=_support,
    slots=_slots,
    views=_views,
    weights=(1.0, WEIGHT),
    at_most_k=True,
    value_is_preact=True,
)
