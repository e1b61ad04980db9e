"""Multi-TopK: TopK trained at k and at 4k, so that every k' in between is good too (Gao et al. 2024, sec. 5.3).

The loss is L(k) + L(4k) / 8. As an autoencoder it is TopK with k.
"""

import jax

from jaxsae.sae.activations.interface import Activation, Support

WIDER, WEIGHT = 4, 1 / 8


def _support(top, extra, spec, layout, training):
    del extra
    k = WIDER * spec.k if training else spec.k
    z, i = top(k)
    return Support(z, i, layout.among_largest(z, k))


def _views(support, spec, layout):
    return layout.among_largest(support.z, spec.k), support.mask


ACTIVATION = Activation(
    value=lambda slots, terms: jax.nn.relu(slots.p),
    support=_support,
    views=_views,
    weights=(1.0, WEIGHT),
    at_most_k=True,
    plain=True,
)
