"""Objectives by name. Adding one is one file beside this one and one line here; its flags are `--NAME.FLAG`.

local           squared error of the activation itself
e2e             KL(original || substituted) of the model's predictions
e2e_downstream  that, and squared errors of the residual stream at later hook points
finetune_kl     KL and squared error in equal parts, to finish a locally trained autoencoder
"""

from dataclasses import field, make_dataclass

from jaxsae.errors import BadInput
from jaxsae.training.objectives import e2e, e2e_downstream, finetune_kl, local
from jaxsae.training.objectives.interface import Batch, Objective, squared_error
from jaxsae.training.objectives.type import Context, NoFlags, ObjectiveType

REGISTRY: dict[str, ObjectiveType] = {
    "local": local.TYPE,
    "e2e": e2e.TYPE,
    "e2e_downstream": e2e_downstream.TYPE,
    "finetune_kl": finetune_kl.TYPE,
}

# One field, and so one group of flags, for each objective that has flags.
ObjectiveConfigs = make_dataclass(
    "ObjectiveConfigs",
    [
        (name, kind.Config, field(default_factory=kind.Config))
        for name, kind in REGISTRY.items()
        if kind.Config is not NoFlags
    ],
    frozen=True,
)
# Else pickle, which processes need, looks for it in `types`.
ObjectiveConfigs.__module__ = __name__


def get(name: str) -> ObjectiveType:
    if name not in REGISTRY:
        raise BadInput(f"unknown objective {name!r}: allowed are {', '.join(REGISTRY)}")
    return REGISTRY[name]


__all__ = ["REGISTRY", "Batch", "Context", "Objective", "ObjectiveConfigs", "ObjectiveType", "get", "squared_error"]
