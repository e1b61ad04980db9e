"""first_letter: does one latent say with which letter a word begins, or is that split among several and absorbed by
others (Chanin et al. 2024)? A model whose own answers are wrong too often has no such feature to look for, and the
result says no more than that.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals.first_letter.absorption import measure
from jaxsae.evals.first_letter.prompts import ask, make_prompts
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject

# Words that the model's own accuracy is measured on first.
ASKED = 500


@dataclass(frozen=True)
class Config:
    words: int = 4000
    """Words of the tokenizer's vocabulary, at most, drawn at random."""
    accuracy: float = 0.5
    """The model's own share of right letters below which it is said not to spell, and no more is measured."""

    def __post_init__(self):
        if self.words < 2 or not 0 <= self.accuracy <= 1:
            raise BadInput(
                f"--first-letter.words is {self.words}, --first-letter.accuracy {self.accuracy}: give at least 2, and "
                "a share between 0 and 1"
            )


def run(subject: Subject, config: Config) -> dict:
    """`can_spell`, the model's `accuracy` and that of always the same letter; if it can, means over letters and the
    numbers of each under `per_letter`.
    """
    prompts = make_prompts(subject.tokenizer(), subject.lm.config.n_ctx, config.words)
    at = slice(0, min(ASKED, len(prompts.tokens)))
    x, kept, right = ask(subject, prompts, at)
    accuracy, commonest = float(right.mean()), float(np.bincount(prompts.letters[at]).max() / len(right))
    out = {"tokens": prompts.tokens[at].size, "words": len(right), "accuracy": accuracy, "commonest_letter": commonest}
    out = {"can_spell": accuracy >= config.accuracy} | out
    if not out["can_spell"]:
        return out
    if at.stop < len(prompts.tokens):
        more = ask(subject, prompts, slice(at.stop, None))
        x, kept, right = (np.concatenate(pair) for pair in zip((x, kept, right), more))
    out |= {"tokens": prompts.tokens.size, "words": len(right), "accuracy": float(right.mean())}
    per_letter = measure(subject, x[kept], prompts.letters[kept])
    out["letters"] = len(per_letter)
    for name in ("absorption_fraction", "full_absorption", "split_latents", "probe_f1", "latent_f1"):
        values = [own[name] for own in per_letter.values()]
        out[name] = float(np.mean(values)) if values else None
    return out | {"per_letter": per_letter}


def check(subject: Subject, config: Config):
    """Raises BadInput without a tokenizer, or if it lacks words or letters, or the model has no room for a prompt."""
    if subject.tokenizer is None:
        raise BadInput("--metrics first_letter reads words, and there is no tokenizer")
    make_prompts(subject.tokenizer(), subject.lm.config.n_ctx, config.words)


def figure(result: dict, path: Path):
    """Absorption by letter; the model's accuracy alone if it cannot spell."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 3.2), layout="constrained")
    ax = picture.subplots()
    letters = result.get("per_letter")
    if letters:
        rows = np.arange(len(letters))
        for name, shift in (("absorption_fraction", -0.2), ("full_absorption", 0.2)):
            ax.bar(rows + shift, [own[name] for own in letters.values()], 0.4, label=name.replace("_", " "))
        ax.set_xticks(rows, [f"{letter}\n{own['split_latents']}" for letter, own in letters.items()])
        ax.set(xlabel="letter, and the latents that it is split into", ylabel="share of words", ylim=(0, 1))
    else:
        ax.barh(["the model", "always the same letter"], [result["accuracy"], result["commonest_letter"]], 0.5)
        title = (
            "A linear probe finds no letter" if result["can_spell"] else "This model cannot spell: no more is measured"
        )
        ax.set(xlabel="share of right first letters", xlim=(0, 1), title=title)
    if letters:
        ax.legend(frameon=False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "accuracy": "Whether the language model can spell at all. If not, the rest cannot be measured.",
    "absorption_fraction": "Part of what a letter's latents say that other latents say in their place. 0 is good.",
    "split": "Latents that one letter takes. 1 is good; more means that the letter is split.",
}

EVALUATION = Evaluation(
    run,
    """Words are tokens of two or more ASCII letters, with or without a space before them, at most --first-letter.words
    at random. A prompt shows up to ten other words, "storm has the first letter: S", a line each, and asks for one. The
    model's accuracy is that of the most probable of the 26 letters, on 500 words first; below --first-letter.accuracy
    (default 0.5) it is said not to spell, and nothing else is measured. commonest_letter: the accuracy of always the
    same answer. Activations are those at the asked word, of words that training did not leave out. Logistic regression
    (standardised, squared penalty of strength 1e-3) on 80 % of the words gives each letter a direction; letters count
    if its F1 on the other words is at least 0.6. Latents are ranked by how much larger their mean is on words with the
    letter, each divided by its mean where it is not 0 (SAEBench: by the weights of an L1 probe); the letter is split
    into as many of the first ten as each add more than 0.03 to the F1 of a balanced logistic regression. Absorption is
    over test words with the letter that the linear probe finds, with SAEBench's thresholds: a latent's share is its
    value, in the model's units, times its decoder row's projection on the direction; absorbers are up to three other
    latents with a cosine of at least 0.1, and count if they make 0.4 of the activation's projection.
    absorption_fraction is their part of what they and the letter's own latents say; full_absorption the share of words
    where none of these is active and one other latent (cosine at least 0.025) makes 0.4 of the projection.""",
    Config,
    needs_lm=True,
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
