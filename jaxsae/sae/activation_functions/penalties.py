"""Sparsity terms that several families have: what each latent of a token costs. B tokens, c slots.

All are weighted by the norm of the decoder's row if rows are free (Conerly et al. 2024).
"""

import jax.numpy as jnp

from jaxsae.sae.activation_functions.options import Penalty


def _power(v, preacts, options):
    v, p = v * preacts.norms, options.sparsity.exponent
    # At v = 0 the slope of v^p is infinite for p < 1: such latents get none, as in PyTorch's norm.
    return jnp.where(v > 0, jnp.where(v > 0, v, 1) ** p, 0)


def _root(total, options):
    return jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / options.sparsity.exponent), 0)


# |v|
L1 = Penalty(lambda v, preacts, options: v * preacts.norms)
# The p-norm, its root not removed (Braun et al. 2024, as in their code).
LP = Penalty(_power, _root)
# Bounded by 1 for each latent.
TANH = Penalty(lambda v, preacts, options: jnp.tanh(options.sparsity.tanh_scale * v * preacts.norms), counts=True)

NORMS = {"l1": L1, "lp": LP, "tanh": TANH}
