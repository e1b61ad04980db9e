"""Activation functions by name. Adding one is one file beside this one and one line here."""

from jaxsae.errors import BadInput
from jaxsae.sae.activations import topk
from jaxsae.sae.activations.interface import Activation

REGISTRY: dict[str, Activation] = {
    "topk": topk.ACTIVATION,
}


def get(name: str) -> Activation:
    if name not in REGISTRY:
        raise BadInput(f"unknown activation function {name!r}: allowed are {', '.join(REGISTRY)}")
    return REGISTRY[name]
