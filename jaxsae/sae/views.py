"""The reconstructions that training compares: an autoencoder's own, and further ones of Multi-TopK or prefixes."""

from jaxsae.sae.types import SAE


def view_weights(sae: SAE, family) -> tuple:
    """Weights of the views: every view of the activation function at every prefix, all latents first."""
    own = (1.0,) if family.views is None else family.weights
    prefixes = max(1, len(sae.spec.prefixes))
    return tuple(weight / prefixes for weight in own for _ in range(prefixes))


def view_masks(sae: SAE, family, chosen, layout):
    """Which slots each view has, in the order of `view_weights`."""
    own = (True,) if family.views is None else family.views(chosen, sae.spec, layout)
    number = chosen.numbers(sae.n) + layout.latent_offset(sae.n)
    prefixes = [number < m for m in sae.spec.prefixes[:-1]]
    return tuple(mask & inside for mask in own for inside in (True, *reversed(prefixes)))
