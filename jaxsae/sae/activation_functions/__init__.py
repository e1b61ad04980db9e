"""Activation functions by name. Adding one is one file beside this one and one line here; `--sae.activation NAME`."""

from dataclasses import field, make_dataclass

from jaxsae.errors import BadInput
from jaxsae.sae.activation_functions import batch_topk, gated, jumprelu, multi_topk, prolu, relu, topk
from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.activation_functions.options import NoFlags, Options

REGISTRY: dict[str, ActivationFunction] = {
    "topk": topk.TYPE,
    "multi_topk": multi_topk.TYPE,
    "batch_topk": batch_topk.TYPE,
    "jumprelu": jumprelu.TYPE,
    "gated": gated.TYPE,
    "prolu_relu": prolu.RELU,
    "prolu_ste": prolu.STE,
    "relu": relu.TYPE,
}

# One field, and so one group of flags, for each family that has flags.
FamilyConfigs = make_dataclass(
    "FamilyConfigs",
    [
        (name, family.Config, field(default_factory=family.Config))
        for name, family in REGISTRY.items()
        if family.Config is not NoFlags
    ],
    frozen=True,
)
# Else pickle, which processes need, looks for it in `types`.
FamilyConfigs.__module__ = __name__


def get(name: str) -> ActivationFunction:
    """The family called `name`. Raises BadInput if there is none."""
    if name not in REGISTRY:
        raise BadInput(f"unknown activation function {name!r}: allowed are {', '.join(REGISTRY)}")
    return REGISTRY[name]


def default_options(name: str) -> Options:
    """What the family called `name` is trained with by default."""
    return Options(own=get(name).Config())
