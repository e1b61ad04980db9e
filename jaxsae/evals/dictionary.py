"""dictionary: the geometry of an autoencoder's weights alone, and how much of it a second autoencoder found too. n
latents, d width.

Cosines are signed. What latents write are the rows of W_dec, what they read those of W_enc.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals import matching, meta_structure
from jaxsae.evals.geometry import check_other, directions, directions_of, nearest, nearest_other, summary
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.meta_structure import Training
from jaxsae.evals.subject import Subject
from jaxsae.sae.decoder import unit_rows
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.types import SAE

# Edges of the histograms of cosines.
EDGES = np.linspace(-1, 1, 101)
# A pair is said to be the same latent above this cosine.
SAME = 0.7


@dataclass(frozen=True)
class Config:
    other: str | None = None
    """A second autoencoder, of the same width, whose latents are matched with those of the first."""
    meta_steps: int = 600
    """Training steps of the smaller autoencoder that explains the decoder; 0: none is trained."""
    meta_k: int = 4
    """Latents that it uses for each row of the decoder."""

    def __post_init__(self):
        if self.meta_steps < 0 or self.meta_k < 1:
            raise BadInput(
                f"--dictionary.meta-steps is {self.meta_steps}, --dictionary.meta-k {self.meta_k}: give 0 or more, and "
                "at least 1"
            )


def run(subject: Subject, config: Config) -> dict:
    """Distributions of cosines within, matches with --dictionary.other, and the share that a smaller autoencoder
    explains. No tokens are read.
    """
    sae, quiet = subject.sae, subject.quiet
    rows = directions(sae)
    out: dict = {"tokens": 0, "latents": sae.n}
    if sae.n > 1:
        out["max_cosine"] = _distribution(nearest_other(rows))
        out["max_encoder_cosine"] = _distribution(nearest_other(_encoder_directions(sae)))
    if sae.W_enc.shape == sae.W_dec.shape:
        out["encoder_decoder_cosine"] = _distribution(_encoder_decoder(sae))
    if config.other is not None:
        other = directions_of(config.other, subject)
        out["matching"] = compare(rows, other.astype(rows.dtype))
    if config.meta_steps and sae.n >= 4 * config.meta_k:
        out["meta_structure"] = _meta_structure(rows, Training(config.meta_k, config.meta_steps), quiet)
    return out


def check(subject: Subject, config: Config):
    """Raises BadInput for a second autoencoder that cannot be compared."""
    check_other(subject, "--dictionary.other", config.other)


def compare(rows, other) -> dict:
    """How unit rows [n, d] agree with those of a second dictionary [m, d].

    `mean_max_cosine`: of each row with its nearest in the other, several may have the same. `hungarian`: of pairs, one
    to one.
    """
    first, _, cosines = matching.match(rows, other)
    return {
        "latents": len(rows),
        "latents_of_other": len(other),
        "mean_max_cosine": float(np.mean(nearest(rows, other))),
        "mean_max_cosine_of_other": float(np.mean(nearest(other, rows))),
        "pairs": len(first),
        "hungarian": _distribution(cosines),
        "same": float((cosines > SAME).mean()),
    }


def _distribution(values) -> dict:
    """The mean, quantiles and histogram of cosines."""
    values = np.asarray(values, np.float64)
    return summary(values) | {"histogram": np.histogram(np.clip(values, -1, 1), EDGES)[0].tolist()}


def _meta_structure(rows, training: Training, quiet: bool) -> dict:
    m = meta_structure.latents_of(len(rows))
    of = lambda rows: meta_structure.explained(rows, m, training, quiet)
    return {
        "latents": m,
        "k": training.k,
        "explained_variance": of(rows),
        "explained_variance_of_random": of(meta_structure.random_rows(rows, training.seed)),
    }


@jax.jit
def _encoder_directions(sae: SAE):
    return jax.reshard(unit_rows(sae.W_enc), REPLICATED)


@jax.jit
def _encoder_decoder(sae: SAE):
    return jax.reshard((unit_rows(sae.W_enc) * unit_rows(sae.W_dec)).sum(1), REPLICATED)


def figure(result: dict, path: Path):
    """Histograms of the cosines, and the share of the decoder that a smaller autoencoder explains."""
    from matplotlib.figure import Figure

    lines = {"max_cosine": "W_dec: nearest other", "max_encoder_cosine": "W_enc: nearest other"}
    lines |= {"encoder_decoder_cosine": "W_enc with W_dec"}
    drawn = {title: result[name] for name, title in lines.items() if name in result}
    if "matching" in result:
        drawn["matched with the other"] = result["matching"]["hungarian"]
    meta = result.get("meta_structure")
    picture = Figure(figsize=(8.5 if meta else 5.5, 3.6), layout="constrained")
    axes = picture.subplots(1, 2, width_ratios=(3, 1), squeeze=False)[0] if meta else [picture.subplots()]
    for title, values in drawn.items():
        counts = np.asarray(values["histogram"])
        axes[0].stairs(counts / counts.sum(), EDGES, label=f"{title} (mean {values['mean']:.2f})", linewidth=1.3)
    low = min((EDGES[np.flatnonzero(values["histogram"])[0]] for values in drawn.values()), default=-1)
    axes[0].set(xlabel="cosine", ylabel="share of latents", xlim=(min(low, 0), 1))
    axes[0].legend(frameon=False, fontsize=8)
    if meta:
        names = {"explained_variance": "W_dec", "explained_variance_of_random": "random"}
        axes[1].bar(list(names.values()), [meta[name] for name in names], color=["C0", "0.7"], width=0.6)
        axes[1].set(ylim=(0, 1), ylabel="variance explained", title=f"{meta['latents']} latents, k {meta['k']}")
        axes[1].title.set_fontsize(9)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "max_cosine": """How near each decoder row is to its nearest other. Values near 1 are copies of one latent; those
    of random directions are small at this width.""",
    "encoder_decoder_cosine": """Whether a latent reads what it writes. Low values are no fault in themselves: an
    encoder also has to tell neighbours apart.""",
    "mean_max_cosine": """How many latents of one autoencoder the other has too. Near 1, both found the same; seeds
    alone give clearly less.""",
    "explained_variance": """Share of the decoder's rows that a smaller autoencoder explains. Above that of random
    rows, latents are made of shared parts.""",
}

EVALUATION = Evaluation(
    run,
    f"""Of the weights alone, all latents, dead ones too; no tokens are read. max_cosine: the largest signed cosine of
    each decoder row with another; max_encoder_cosine: of encoder rows; encoder_decoder_cosine: of each latent's two
    rows. matching with --dictionary.other: mean_max_cosine over nearest rows, of which several may share one; hungarian
    over pairs, one to one, with the largest summed cosine (of more than {matching.ALL_PAIRS:,} pairs, those in which
    one is among the {matching.NEAREST} nearest of the other); same: the share of pairs above {SAME}. meta_structure: a
    TopK autoencoder of a quarter of the latents, trained on the unit decoder rows (Adam, --dictionary.meta-steps steps
    of {meta_structure.BATCH} rows), and the share of their variance around their mean that it explains with
    --dictionary.meta-k latents a row; of_random: the same for random unit rows with their mean and covariance.""",
    Config,
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
