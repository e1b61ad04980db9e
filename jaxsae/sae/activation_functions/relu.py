"""ReLU with a sparsity penalty: the baseline (Gao et al. 2024, sec. 2.2), and the end-to-end paper's (sec. 2)."""

import jax

from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.activation_functions.penalties import NORMS

TYPE = ActivationFunction(
    value=lambda preacts, options: jax.nn.relu(preacts.pre), penalties=NORMS, value_is_preact=True
)
