"""Activation functions by name. Adding one is one file beside this one and one line here; `--sae.activation NAME`."""

from jaxsae.errors import BadInput
from jaxsae.flags import groups
from jaxsae.sae.activation_functions import batch_topk, gated, groupmax, jumprelu, multi_topk, prolu, relu, topk
from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.activation_functions.options import Options

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

# What other libraries train: such autoencoders are read and evaluated, and no flag asks for them.
READ_ONLY: dict[str, ActivationFunction] = {"topk_without_relu": topk.WITHOUT_RELU, "groupmax": groupmax.TYPE}

FamilyConfigs = groups("FamilyConfigs", REGISTRY, __name__)


def get(name: str) -> ActivationFunction:
    """The family called `name`. Raises BadInput if there is none."""
    known = REGISTRY | READ_ONLY
    if name not in known:
        raise BadInput(f"unknown activation function {name!r}: allowed are {', '.join(known)}")
    return known[name]


def default_options(name: str) -> Options:
    """What the family called `name` is trained with by default."""
    return Options(own=get(name).Config())
