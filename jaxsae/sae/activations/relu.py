"""ReLU with a sparsity penalty: the baseline (Gao et al. 2024, sec. 2.2), and the end-to-end paper's (sec. 2)."""

import jax

from jaxsae.sae.activations.interface import Activation

ACTIVATION = Activation(value=lambda slots, terms: jax.nn.relu(slots.p), penalties=("l1", "lp", "tanh"), plain=True)
