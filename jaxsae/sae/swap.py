"""Another activation function for a trained autoencoder, its weights as they are (Gao et al. 2024, sec. 5.3)."""

import jax.numpy as jnp

from jaxsae.errors import BadInput
from jaxsae.sae import activation_functions
from jaxsae.sae.types import SAE


def with_topk(sae: SAE, k: int) -> SAE:
    """The same weights with TopK: the k largest positive pre-activations of each token."""
    check_can_swap(sae)
    if not 1 <= k <= sae.n:
        raise BadInput(f"k is {k}: allowed is 1 to the number of latents, {sae.n}")
    return sae.replace(spec=sae.spec.replace(activation="topk", k=k), extra={})


def with_threshold(sae: SAE, theta) -> SAE:
    """The same weights with JumpReLU: pre-activations above theta > 0, one number for all latents or for each."""
    check_can_swap(sae)
    theta = jnp.broadcast_to(jnp.asarray(theta, sae.b_enc.dtype), sae.b_enc.shape)
    if not bool((theta > 0).all()):
        raise BadInput(f"theta is {float(theta.min())} at the least: give positive thresholds")
    return sae.replace(
        spec=sae.spec.replace(activation="jumprelu"), extra=activation_functions.get("jumprelu").from_threshold(theta)
    )


def check_can_swap(sae: SAE):
    """Raises BadInput for a family whose values are not its pre-activations."""
    if not activation_functions.get(sae.spec.activation).value_is_preact:
        plain = [name for name, family in activation_functions.REGISTRY.items() if family.value_is_preact]
        raise BadInput(
            f"the values of {sae.spec.activation} are not its pre-activations: only {', '.join(plain)} can be swapped"
        )
