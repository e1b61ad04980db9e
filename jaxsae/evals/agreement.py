"""agreement: subject-verb agreement through an autoencoder (Braun et al. 2024, app. I), on pairs like

    The athlete that the managers -> like, not likes

P distinct prefixes, T positions, R rows (a prefix with a right and a wrong answer), V answers, d width. The number of
a row is logit(right) - logit(wrong), of the answers' first tokens after the prefix; m is its mean over rows. End of
text stands before every prefix. Reconstructions are at every position, there too, except what --skip-first and
--skip-tokens left out of training.

A prefix is run once however many rows share it, and of its last token only the answers' logits are computed. Prefixes
are split over all devices of the mesh that is set.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.pairs import Pairs, read, tokenise
from jaxsae.evals.readout import answers, everywhere, numbers, readout_of, split, stream_at
from jaxsae.evals.subject import Subject, put_in, reconstruct
from jaxsae.evals.topk_curve import topk_curve
from jaxsae.lm.architecture import block_ends
from jaxsae.lm.model import LM
from jaxsae.sae.types import SAE


@dataclass(frozen=True)
class Config:
    pairs: str | None = None
    """Folder of pairs, one file of JSON lines for each template, each line with texts called clean_prefix, clean_answer
    and patch_answer."""
    examples: int = 1000
    """Rows of each template."""
    curve_examples: int = 0
    """Rows of each template for the curve of how few latents carry the difference; default: no curve, which costs a
    pass for every latent that is active."""

    def __post_init__(self):
        if self.examples < 1 or self.curve_examples < 0:
            raise BadInput(
                f"--agreement.examples is {self.examples}, --agreement.curve-examples {self.curve_examples}: give at "
                "least 1, and 0 or more"
            )


def run(subject: Subject, config: Config) -> dict[str, dict]:
    """{template: {metric: number}}, templates called as their files are, and the tokens of all prefixes."""
    tokenizer, out = subject.tokenizer(), {"tokens": 0}
    for path in _files(config):
        pairs, dropped = _pairs(subject, tokenizer, path, config.examples)
        measured = faithfulness(subject.lm, subject.sae, subject.hook, pairs)
        out["tokens"] += int(np.sum(np.asarray(pairs.last) + 1))
        out[path.stem] = {"rows": len(pairs.row), "dropped": sum(dropped.values()), **measured}
        if config.curve_examples:
            pairs, _ = _pairs(subject, tokenizer, path, config.curve_examples)
            curve = topk_curve(subject.lm, subject.sae, subject.hook, pairs)
            shares = [float(share) for share in curve.faithfulness]
            out[path.stem]["curve"] = {"k": curve.ks.tolist(), "faithfulness": shares, "active": len(curve.latents)}
    return out


def check(subject: Subject, config: Config):
    """Raises BadInput without pairs, without a tokenizer, or if the hook point is not in the residual stream."""
    if config.pairs is None:
        raise BadInput("--metrics agreement needs --agreement.pairs FOLDER")
    if subject.tokenizer is None:
        raise BadInput("--metrics agreement reads text, and there is no tokenizer")
    _files(config)
    block_ends(subject.lm.config, subject.hook)
    subject.tokenizer()


def _pairs(subject: Subject, tokenizer, path: Path, limit: int) -> tuple[Pairs, dict]:
    """A file's pairs, and how many were dropped; reconstructions are put in where the subject's source keeps tokens."""
    pairs, dropped = tokenise(read(path, limit), tokenizer)
    return (pairs if subject.keeps_all else replace(pairs, kept=np.asarray(subject.source.kept(pairs.tokens)))), dropped


def _files(config: Config) -> list[Path]:
    files = sorted(path for path in Path(config.pairs).glob("*") if path.suffix in (".json", ".jsonl"))
    if not files:
        raise BadInput(f"--agreement.pairs {config.pairs} holds no .json or .jsonl files")
    return files


def differences(lm: LM, pairs: Pairs) -> np.ndarray:
    """logit(right) - logit(wrong) of each row, by the model itself: [R]."""
    return np.asarray(_differences_of_model(lm, split(pairs)))


def accuracy(differences) -> float:
    """Share of rows on which the right answer has the larger logit."""
    return float((np.asarray(differences) > 0).mean())


def faithfulness(lm: LM, sae: SAE, hook: str, pairs: Pairs) -> dict[str, float]:
    """m of the model, with the autoencoder at residual `hook`, and with zeros there; and how much of it is kept.

    `faithfulness` is m_sae / m_model, as the paper's code has it and its table 7; `faithfulness_paper` is its formula,
    (m_sae - m_empty) / (m_model - m_empty).
    """
    model, inserted, empty = (np.asarray(a, np.float64) for a in _three(lm, sae, split(pairs), hook))
    m, m_sae, m_empty = model.mean(), inserted.mean(), empty.mean()
    return {
        "m_model": float(m),
        "m_sae": float(m_sae),
        "m_empty": float(m_empty),
        "faithfulness": float(m_sae / m),
        "faithfulness_paper": float((m_sae - m_empty) / (m - m_empty)),
        "accuracy_model": accuracy(model),
        "accuracy_sae": accuracy(inserted),
    }


@jax.jit
def _differences_of_model(lm, pairs):
    end = f"blocks.{lm.config.n_layer - 1}.hook_resid_post"
    stream = stream_at(lm, pairs, end)
    readout = readout_of(lm, pairs, stream.dtype)
    logits = lambda model, stream, last: answers(*model, stream, last, end)
    return numbers(everywhere(logits, (lm, readout), stream, pairs.last), pairs)


@partial(jax.jit, static_argnames="hook")
def _three(lm, sae, pairs, hook):
    """The numbers of all rows with the activation, its reconstruction and zeros at the hook: [3, R]."""
    x = stream_at(lm, pairs, hook)
    readout = readout_of(lm, pairs, x.dtype)

    def logits(model, last, *streams):
        return tuple(answers(*model, stream, last, hook) for stream in streams)

    xhat = reconstruct(sae, x, kept=pairs.kept)
    empty = jnp.zeros_like(x) if pairs.kept is None else put_in(jnp.zeros_like(x), x, pairs.kept)
    three = everywhere(logits, (lm, readout), pairs.last, x, xhat, empty)
    return jnp.stack([numbers(logits, pairs) for logits in three])


MEANINGS = {
    "faithfulness": """Share of the model's preference for the right verb form that survives. 1 is perfect, above 1
    exaggerates. It tests one ability only.""",
}

EVALUATION = Evaluation(
    run,
    """Pairs of a prefix and two verb forms. m is the mean of logit(right) - logit(wrong) after the prefix, with end of
    text before it and the reconstruction, of latents that are chosen exactly, at every position that training did not
    leave out; faithfulness is m_sae / m_model, faithfulness_paper (m_sae - m_empty) / (m_model - m_empty), where
    m_empty has zeros in the reconstruction's place.""",
    Config,
    needs_lm=True,
    check=check,
    meanings=MEANINGS,
)
