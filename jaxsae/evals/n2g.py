"""n2g: how well token patterns explain latents (Gao et al. 2024, sec. 4.3): precision and recall on held-out tokens.

patterns.py has the algorithm, explaining.py asks an autoencoder. A latents that are explained.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals.explaining import Explanations, activations, check_text, explain_latents, halves, on_host
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.patterns import Document, explain, predict
from jaxsae.evals.subject import Subject

LONGEST = 256
METRICS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Config:
    latents: int = 64
    """Latents to explain, drawn from those that are active."""
    documents: int = 16
    """Random activations that a latent's explanation is made from, if there are so many."""
    length: int = 64
    """Tokens of a pattern at most."""
    tokens: int = 131_072
    """Tokens to read; activations come from the first half of the contexts, precision and recall from the second."""
    seed: int = 0
    """Of the latents and activations."""

    def __post_init__(self):
        for name in ("latents", "documents", "length", "tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"--n2g.{name} is {getattr(self, name)}: give at least 1")
        if self.length > LONGEST:
            raise BadInput(f"--n2g.length is {self.length}: give at most {LONGEST}, as tries are as deep")


def run(subject: Subject, config: Config) -> dict:
    """Means over latents of precision, recall and F1, with standard errors, and the explanations."""
    subject, train, test = halves(subject, config.tokens)
    explanations = explain_latents(subject, train, config.documents, config.length, config.seed, config.latents)
    A = len(explanations.latents)
    number_of = np.full(subject.sae.n, -1)
    number_of[explanations.latents] = np.arange(A)
    fires, active, both = (np.zeros(A, np.int64) for _ in range(3))
    tokens = 0
    for batch in subject.batches(title="n2g: held-out tokens", among=test):
        ids, kept = on_host(subject, batch)
        token, number, _ = explanations.simulate(ids, kept)
        at, latent, _ = activations(subject, batch, kept)
        of_explained = number_of[latent] >= 0
        true = at[of_explained] * A + number_of[latent[of_explained]]
        fires += np.bincount(number, minlength=A)
        active += np.bincount(true % A, minlength=A)
        both += np.bincount(np.intersect1d(token * A + number, true) % A, minlength=A)
        tokens += int(kept.sum())
    return {"tokens": subject.rows, **_result(explanations, fires, active, both, tokens)}


def _result(explanations: Explanations, fires, active, both, tokens) -> dict:
    with np.errstate(divide="ignore", invalid="ignore"):
        # NaN for what is never said, and what never happens.
        each = {"precision": both / fires, "recall": both / active, "f1": 2 * both / (fires + active)}
    out = {
        "latents": len(active),
        "activations": explanations.activations,
        "held_out_tokens": tokens,
    }
    for name, values in each.items():
        defined = values[np.isfinite(values)]
        out[name] = float(defined.mean()) if len(defined) else None
        out[f"{name}_histogram"] = np.histogram(defined, 10, (0, 1))[0].tolist()
        out[f"{name}_se"] = float(defined.std(ddof=1) / np.sqrt(len(defined))) if len(defined) > 1 else None
    out["density"] = float(active.mean() / max(tokens, 1)) if len(active) else None
    out["never_fires"] = float((fires == 0).mean()) if len(fires) else None
    number = lambda value: float(value) if np.isfinite(value) else None
    of_latents = zip(explanations.latents.tolist(), explanations.tries, zip(*(each[name] for name in METRICS)))
    out["explanations"] = [
        {"latent": latent, **{name: number(value) for name, value in zip(METRICS, values)}, "trie": trie}
        for latent, trie, values in of_latents
    ]
    return out


def check(subject: Subject, config: Config):
    """Raises BadInput without a tokenizer, or without contexts for both halves."""
    check_text(subject, config.tokens)


def figure(result: dict, path: Path):
    """How precision and recall are spread over latents."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.5, 3), layout="constrained")
    for ax, name in zip(picture.subplots(1, 2, sharey=True), METRICS):
        ax.stairs(result[f"{name}_histogram"], np.linspace(0, 1, 11), fill=True, color="0.4")
        if result[name] is not None:
            ax.axvline(result[name], color="0.1", linewidth=1, linestyle="--")
            ax.set_title(f"mean {result[name]:.3f}", fontsize=9)
        ax.set(xlabel=name, xlim=(0, 1))
        ax.spines[["top", "right"]].set_visible(False)
    picture.axes[0].set_ylabel("latents")
    picture.savefig(path, dpi=110)


MEANINGS = {
    "precision": """Of the tokens where a pattern fires, the share where its latent does. High is good; a pattern may
    be too narrow and still be precise.""",
    "recall": """Of the tokens where a latent fires, the share where its pattern does. Low recall: token patterns do
    not say what the latent is for.""",
    "f1": """The harmonic mean of both. It judges explanations of this simple kind, so a latent with another kind of
    meaning scores low.""",
}

EVALUATION = Evaluation(
    run,
    """N2G: --n2g.latents latents, drawn from those that are active in the first half of the contexts; each is explained
    by patterns of tokens from at most --n2g.documents random activations there. A pattern is the shortest end of the
    context, of at most --n2g.length tokens, that alone gives half of the activation; a token that can be replaced by
    " _" without losing half of it is a wildcard. On all tokens of the second half that training read, an explanation
    and a latent fire or do not (value above 0): precision is the share of the tokens where the explanation fires at
    which the latent does, recall the share of those where the latent fires at which the explanation does, F1 their
    harmonic mean. Means over latents and their standard errors; precision over those whose explanation fires at all,
    recall over those that do, F1 over those of which either does. density: mean share of tokens on which a latent
    fires, the precision of a random explanation.""",
    Config,
    needs_lm=True,
    check=check,
    coders=("autoencoder", "transcoder", "crosscoder"),
    figure=figure,
    apart=("explanations",),
    meanings=MEANINGS,
)

__all__ = ["Document", "explain", "predict"]
