"""What a step is made with, and what it says beside its gradient."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyper:
    """What may differ between runs of one compiled step; traced."""

    lr: Any = None
    auxk_coef: Any = None
    sparsity: Any = None  # weight of the sparsity term
    dead_window: Any = None
    auxk_window: Any = None  # idle tokens after which AuxK revives a latent
    k: Any = None  # latents kept per token, up to the k that the step was compiled for; None: that k
    mse_scale: Any = None  # of squared errors; that of the state, which a step puts here


class Whole(NamedTuple):
    """What a micro-batch must know of the whole batch."""

    variances: Any  # `Objective.variances`
    terms: Any = None  # of the objective, if it asks; None: this is the whole batch
    residual_variance: Any = None  # AuxK's denominator; None: this is the whole batch


class Seen(NamedTuple):
    """What the latents did in a batch."""

    fired: Any  # [n@latent] tokens on which each latent was active
    min_active: Any  # the smallest value above 0, for families that ask
