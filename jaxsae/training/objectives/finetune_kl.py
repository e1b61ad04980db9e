"""finetune_kl: KL and reconstruction error in equal parts, to finish a locally trained autoencoder (Karvonen 2025)."""

from jaxsae.training.objectives import end_to_end
from jaxsae.training.objectives.interface import Objective
from jaxsae.training.objectives.type import Context, ObjectiveType


def make(config: end_to_end.Common, context: Context) -> Objective:
    parts = end_to_end.make_parts(config, context)

    def loss(terms, batch_terms):
        # Recomputed at every step: the value stays that of the squared error, and with it what was tuned for it.
        alpha = batch_terms["reconstruction"] / (batch_terms["kl"] + 1e-8)
        return (alpha * terms["kl"] + terms["reconstruction"]) / 2

    return Objective(parts.prepare, parts.terms, loss, parts.variances, needs_batch_terms=True, sites=parts.sites)


TYPE = ObjectiveType(make, reads="contexts", Config=end_to_end.Common, lm_passes=(1, 3))
