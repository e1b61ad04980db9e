"""e2e: KL(original || substituted) of the language model's predictions (Braun et al. 2024, sec. 2.2)."""

from dataclasses import dataclass

from jaxsae.training.objectives import end_to_end
from jaxsae.training.objectives.interface import Objective
from jaxsae.training.objectives.type import Context, ObjectiveType


@dataclass(frozen=True)
class Config(end_to_end.Common):
    kl_coef: float = 1.0
    """Weight of the KL divergence."""
    reconstruction_coef: float = 0.0
    """Weight of the autoencoder's own reconstruction error; with 10 or so random weights need far fewer tokens than
    with the KL alone (experiments/e2e_topk.py)."""

    def __post_init__(self):
        self.check("e2e", ("kl_coef", "reconstruction_coef"))


def make(config: Config, context: Context) -> Objective:
    parts = end_to_end.make_parts(config, context)

    def loss(terms, batch_terms):
        del batch_terms
        return config.kl_coef * terms["kl"] + config.reconstruction_coef * terms["reconstruction"]

    return Objective(parts.prepare, parts.terms, loss, parts.variances, sites=parts.sites)


TYPE = ObjectiveType(make, reads="contexts", Config=Config, lm_passes=(1, 3))
