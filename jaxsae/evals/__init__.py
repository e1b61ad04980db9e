"""Evaluations by name. Adding one is one file beside this one and one line here; its flags are `--NAME.FLAG`.

standard            reconstruction and downstream loss, which every run ends with
compute_equivalent  after how much of its training the language model was as good as with the autoencoder in it
later_layers        how far the residual stream is from the original, layer by layer
geometry            which latents are alive, and how near their directions are to one another
dictionary          cosines of the weights, matches with a second autoencoder, and what a smaller one explains of them
progressive         TopK(k') and JumpReLU(theta) at test time, for every L0
refinement          how far the values are from the best ones for the latents that were chosen
dark_matter         how much of the error, and of its norm, a linear map of the input predicts
ablation            on how few outputs the ablation of one latent has an effect
probes              how well single latents answer binary questions about texts
n2g                 how well patterns of tokens explain latents
explanations        the language model's loss with latents simulated by such patterns
first_letter        whether one latent says with which letter a word begins, or others absorb and split that
agreement           subject-verb agreement through the autoencoder
synthetic           latents compared with the features that synthetic activations were made of
crosscoder          which latents of a crosscoder are shared by its sections, and how each section is reconstructed
"""

import jax

from jaxsae.errors import BadInput
from jaxsae.evals import (
    ablation,
    agreement,
    compute_equivalent,
    crosscoder,
    dark_matter,
    dictionary,
    explanations,
    first_letter,
    geometry,
    later_layers,
    n2g,
    probes,
    progressive,
    refinement,
    standard,
    synthetic,
)
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject
from jaxsae.flags import NoFlags, groups

EVALUATIONS: dict[str, Evaluation] = {
    "standard": standard.EVALUATION,
    "compute_equivalent": compute_equivalent.EVALUATION,
    "later_layers": later_layers.EVALUATION,
    "geometry": geometry.EVALUATION,
    "dictionary": dictionary.EVALUATION,
    "progressive": progressive.EVALUATION,
    "refinement": refinement.EVALUATION,
    "dark_matter": dark_matter.EVALUATION,
    "ablation": ablation.EVALUATION,
    "probes": probes.EVALUATION,
    "n2g": n2g.EVALUATION,
    "explanations": explanations.EVALUATION,
    "first_letter": first_letter.EVALUATION,
    "agreement": agreement.EVALUATION,
    "synthetic": synthetic.EVALUATION,
    "crosscoder": crosscoder.EVALUATION,
}

EvaluationConfigs = groups("EvaluationConfigs", EVALUATIONS, __name__)


def chosen(names: tuple[str, ...]) -> tuple[str, ...]:
    """The evaluations that `--metrics` asks for, each once, in the order of the registry. BadInput for unknown ones."""
    if unknown := [name for name in names if name not in EVALUATIONS and name != "all"]:
        raise BadInput(f"--metrics {unknown[0]} is unknown: allowed are all, {', '.join(EVALUATIONS)}")
    return tuple(name for name in EVALUATIONS if name in names or "all" in names)


def check(name: str, subject: Subject, configs=None):
    """Raises BadInput if `subject` lacks what an evaluation needs."""
    if subject.kind not in EVALUATIONS[name].coders:
        can = [other for other, evaluation in EVALUATIONS.items() if subject.kind in evaluation.coders]
        raise BadInput(f"--metrics {name} is not of a {subject.kind}: allowed are {', '.join(can)}")
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
