"""TopK: keep the k largest pre-activations of each token, then ReLU (Gao et al. 2024, sec. 2.3).

The ReLU makes latents non-negative where a token has fewer than k positive pre-activations, so L0 can be below k.
"""

import jax

from jaxsae.sae.activations.interface import Activation, Support


def _init(key, n):
    del key, n
    return {}


def _support(top, extra, spec, layout):
    del extra
    z, i = top(spec.k)
    return Support(z, i, layout.among_largest(z, spec.k))


def _value(p, spec):
    del spec
    return jax.nn.relu(p)


ACTIVATION = Activation(init=_init, support=_support, value=_value)
