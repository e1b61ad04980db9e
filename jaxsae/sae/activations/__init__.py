"""Activation functions by name. Adding one is one file beside this one and one line here."""

from jaxsae.errors import BadInput
from jaxsae.sae.activations import batch_topk, gated, jumprelu, multi_topk, prolu, relu, topk
from jaxsae.sae.activations.interface import Activation

REGISTRY: dict[str, Activation] = {
    "topk": topk.ACTIVATION,
    "multi_topk": multi_topk.ACTIVATION,
    "batch_topk": batch_topk.ACTIVATION,
    "jumprelu": jumprelu.ACTIVATION,
    "gated": gated.ACTIVATION,
    "prolu_relu": prolu.RELU,
    "prolu_ste": prolu.STE,
    "relu": relu.ACTIVATION,
}


def get(name: str) -> Activation:
    if name not in REGISTRY:
        raise BadInput(f"unknown activation function {name!r}: allowed are {', '.join(REGISTRY)}")
    return REGISTRY[name]
