"""An entry of the registry of objectives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxsae.flags import NoFlags


@dataclass(frozen=True)
class ObjectiveType:
    """One entry of the registry.

    make(config, context) -> Objective, from the flags of the type and a `Context`; raises BadInput if it cannot be
    computed there. `reads`: "rows" of activations [B, d], or "contexts" of token ids [b, T], which need a language
    model. `auxk`: whether AuxK is on by default for the TopK families.
    """

    make: Callable
    reads: Literal["rows", "contexts"]
    Config: type = NoFlags
    auxk: bool = False
    # Passes of the language model per token as (prefix, suffix), a backward pass counting two forward ones.
    lm_passes: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Context:
    """What every objective is made from, beside its own flags."""

    sites: tuple  # (hook point, SAEConfig) of each autoencoder, in the order of the network
    mse_scale: str = "variance"  # "variance": squared errors are in units of the variance of the activations; "none"
    lm: Any = None  # configuration of the language model; None where activations come from files
    name: str = "local"
    hook_out: str | None = None  # of a transcoder: the hook point of what it replaces
