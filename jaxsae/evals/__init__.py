"""Evaluations by name. Adding one is one file beside this one and one line here; its flags are `--NAME.FLAG`.

standard      reconstruction and downstream loss, which every run ends with
later_layers  how far the residual stream is from the original, layer by layer
geometry      which latents are alive, and how near their directions are to one another
agreement     subject-verb agreement through the autoencoder
"""

import jax

from jaxsae.errors import BadInput
from jaxsae.evals import agreement, geometry, later_layers, standard
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject
from jaxsae.flags import NoFlags, groups

EVALUATIONS: dict[str, Evaluation] = {
    "standard": standard.EVALUATION,
    "later_layers": later_layers.EVALUATION,
    "geometry": geometry.EVALUATION,
    "agreement": agreement.EVALUATION,
}

EvaluationConfigs = groups("EvaluationConfigs", EVALUATIONS, __name__)


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """The evaluations that `--metrics` asks for, each once, in the order of the registry. BadInput for unknown ones."""
    if unknown := [name for name in names if name not in EVALUATIONS and name != "all"]:
        raise BadInput(f"--metrics {unknown[0]} is unknown: allowed are all, {', '.join(EVALUATIONS)}")
    return tuple(name for name in EVALUATIONS if name in names or "all" in names)


def check(name: str, subject: Subject, configs=None):
    """Raises BadInput if `subject` lacks what an evaluation needs."""
    if EVALUATIONS[name].needs_lm and subject.lm is None:
        raise BadInput(f"--metrics {name} needs a language model, and the activations come from files: give --text")
    EVALUATIONS[name].check(subject, _config(name, configs))


def measure(name: str, subject: Subject, configs=None) -> dict:
    """What an evaluation returns for `subject`, with the flags in `configs` (default: EvaluationConfigs())."""
    check(name, subject, configs)
    with jax.set_mesh(subject.mesh):
        return EVALUATIONS[name].run(subject, _config(name, configs))


def _config(name: str, configs):
    return getattr(EvaluationConfigs() if configs is None else configs, name, NoFlags())


__all__ = ["EVALUATIONS", "Evaluation", "EvaluationConfigs", "Subject", "check", "chosen", "measure"]
