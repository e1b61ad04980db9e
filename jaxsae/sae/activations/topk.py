"""TopK: keep the k largest pre-activations of each token, then ReLU (Gao et al. 2024, sec. 2.3).

The ReLU makes latents non-negative where a token has fewer than k positive pre-activations, so L0 can be below k.
"""

import jax

from jaxsae.sae.activations.interface import Activation, Support


def _support(top, extra, spec, layout, training):
    del extra, training
    z, i = top(spec.k)
    return Support(z, i, layout.among_largest(z, spec.k))


ACTIVATION = Activation(value=lambda slots, terms: jax.nn.relu(slots.p), support=_support, at_most_k=True, plain=True)
