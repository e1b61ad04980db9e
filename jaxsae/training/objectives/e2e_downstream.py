"""e2e_downstream: the KL divergence of `e2e`, and squared errors of the residual stream at later hook points
(Braun et al. 2024, sec. 2.3).
"""

from dataclasses import dataclass

from jaxsae.errors import BadInput
from jaxsae.lm.architecture import block_ends, block_starts, depth
from jaxsae.training.objectives import end_to_end
from jaxsae.training.objectives.interface import Objective
from jaxsae.training.objectives.type import Context, ObjectiveType

FLAG = "--e2e-downstream.downstream-hooks"


@dataclass(frozen=True)
class Config(end_to_end.Common):
    kl_coef: float = 0.5
    """Weight of the KL divergence (Braun et al. 2024, app. D)."""
    downstream_coef: float = 2.5
    """Total weight of the errors at later hook points, divided equally among them."""
    downstream_hooks: tuple[str, ...] = ()
    """The later hook points; default: the residual stream before every later block."""
    reconstruction_coef: float = 0.0
    """Weight of the autoencoder's own reconstruction error."""

    def __post_init__(self):
        self.check("e2e-downstream", ("kl_coef", "downstream_coef", "reconstruction_coef"))


def weights(config: Config, context: Context) -> dict[str, float]:
    """{hook point: weight} of the later squared errors. Raises BadInput if one is not downstream of the autoencoder.

    By default they are the streams that later blocks read; the last one, which none reads, only if there is no other.
    """
    lm, (place, first, _) = context.lm, end_to_end.entry(context)
    hooks = config.downstream_hooks or block_starts(lm, first) or block_ends(lm, first)
    if not hooks:
        raise BadInput(f"--objective e2e_downstream at {place}: nothing is downstream of it, give an earlier --hook")
    depths = [depth(lm, hook) for hook in hooks]
    if len({*depths}) < len(depths):
        raise BadInput(f"{FLAG} {' '.join(hooks)}: two of them are one place, give each once")
    for hook, cut in zip(hooks, depths):
        if cut <= depth(lm, first):
            raise BadInput(f"{FLAG} {hook} is not downstream of {place}, where the autoencoder is")
    return dict.fromkeys(hooks, config.downstream_coef / len(hooks))


def make(config: Config, context: Context) -> Objective:
    end_to_end.check_sites(context)
    parts = end_to_end.make_parts(config, context, trained := weights(config, context))
    error = "mse" if context.mse_scale == "none" else "fvu"

    def loss(terms, batch_terms):
        del batch_terms
        total = config.kl_coef * terms["kl"] + config.reconstruction_coef * terms["reconstruction"]
        return total + sum(weight * terms[f"{error}/{hook}"] for hook, weight in trained.items())

    return Objective(parts.prepare, parts.terms, loss, parts.variances, sites=parts.sites)


TYPE = ObjectiveType(make, reads="contexts", Config=Config, lm_passes=(1, 3))
