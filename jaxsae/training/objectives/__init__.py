"""Objectives by name. Adding one is one file beside this one and one line here; its flags are `--NAME.FLAG`.

local           squared error of the activation itself
e2e             KL(original || substituted) of the model's predictions
e2e_downstream  that, and squared errors of the residual stream at later hook points
finetune_kl     KL and squared error in equal parts, to finish a locally trained autoencoder
"""

from jaxsae.errors import BadInput
from jaxsae.flags import groups
from jaxsae.training.objectives import e2e, e2e_downstream, finetune_kl, local
from jaxsae.training.objectives.interface import Batch, Objective, squared_error
from jaxsae.training.objectives.type import Context, ObjectiveType

REGISTRY: dict[str, ObjectiveType] = {
    "local": local.TYPE,
    "e2e": e2e.TYPE,
    "e2e_downstream": e2e_downstream.TYPE,
    "finetune_kl": finetune_kl.TYPE,
}

ObjectiveConfigs = groups("ObjectiveConfigs", REGISTRY, __name__)


def get(name: str) -> ObjectiveType:
    """The objective called `name`. Raises BadInput if there is none."""
    if name not in REGISTRY:
        raise BadInput(f"unknown objective {name!r}: allowed are {', '.join(REGISTRY)}")
    return REGISTRY[name]


__all__ = ["REGISTRY", "Batch", "Context", "Objective", "ObjectiveConfigs", "ObjectiveType", "get", "squared_error"]
