"""later_layers: how far the residual stream is from the original downstream of an autoencoder, layer by layer (Braun et
al. 2024, sec. 3.3, app. B).

b contexts, T positions, d width. The reconstruction is put in at the tokens that training read, and all numbers are
over these. Every number is given for all positions, for position 0 alone (`pos0_`) and for the others (`no_pos0_`):
GPT-2's stream is tens of times longer at position 0, so there a squared error says little about the rest.

mse                            mean over b, T and d of (changed - original)^2, in squared units of the stream
explained_variance             1 - sum ||changed - original||^2 / sum ||original - E original||^2, sums over all tokens
explained_variance_paper       mean over tokens of 1 - ||changed - original||^2 / ||original - mean||^2, with the mean
                               of each batch, as in the paper's code; `_ln`: after LayerNorm without gain and bias
explained_variance_swapped     at the autoencoder alone: the same with the input as prediction and the output as
                               target, which is what the paper's figures show there; `_ln` too
l2_ratio, cosine               at the autoencoder alone: means over tokens of ||xhat|| / ||x|| and of their cosine
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject, reconstruct
from jaxsae.lm.hooks import parse
from jaxsae.lm.model import LM, prefixes
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.layout import REPLICATED, TOKENS
from jaxsae.sae.select import EXACT, Selection
from jaxsae.sae.types import SAE

VIEWS = {"": slice(None), "pos0_": slice(0, 1), "no_pos0_": slice(1, None)}


@dataclass(frozen=True)
class Config:
    batch: int = 8
    """Contexts whose mean the `_paper` and `_swapped` values are measured from."""

    def __post_init__(self):
        if self.batch < 1:
            raise BadInput(f"--later-layers.batch is {self.batch}: give at least 1")


def run(subject: Subject, config: Config) -> dict[str, dict[str, float | None]]:
    """{place: {metric: value}} for the places of `places`.

    The `_paper` and `_swapped` values depend on the batch, whose mean they use. A view of which all tokens are equal
    (position 0, if every context begins alike) has no variance to explain: its explained variances are None. All is
    None of a view without tokens (position 0 with --skip-first).
    """
    total: dict = {}
    for batch in subject.batches(config.batch, "later layers"):
        new = _batch(subject.lm, subject.sae, subject.text(batch)[0], batch.kept, subject.hook, subject.selection)
        for key, value in jax.device_get(new).items():
            total[key] = merge(total[key], value) if key in total else value
    out: dict[str, dict] = {place: {} for place in places(subject.hook, subject.lm.config.n_layer)}
    for (place, view), of_view in total.items():
        values = metrics(of_view)
        out[place] |= {f"{view}{name}": value if np.isfinite(value) else None for name, value in values.items()}
    return out


def places(hook: str, n_layer: int) -> list[str]:
    """`hook` itself, then the end of every block downstream of it (what enters the next block)."""
    at = parse(hook, n_layer)
    first = at.layer + (at.kind == "hook_resid_post")
    return [hook, *(f"blocks.{layer}.hook_resid_post" for layer in range(first, n_layer))]


def streams(lm: LM, sae: SAE, tokens, hook: str, selection: Selection = EXACT, kept=None) -> dict[str, tuple]:
    """{place: (original, changed)}, [b, T, d] each, if the reconstruction takes the activation's place at `hook`.

    It does at the tokens in `kept` [b, T] (default: all). Contexts [b@data, T] are split over all devices of the mesh
    that is set.
    """
    here, *later = places(hook, lm.config.n_layer)
    unchanged = lambda lm, tokens: prefixes(lm, tokens, [here, *later])
    original = on_contexts(unchanged, lm, tokens)
    xhat = reconstruct(sae, original[here], selection, kept)
    replaced = lambda lm, tokens, xhat: prefixes(lm, tokens, later, {here: lambda _: xhat})
    changed = on_contexts(replaced, lm, tokens, xhat) if later else {}
    return {place: (original[place], {here: xhat, **changed}[place]) for place in (here, *later)}


def explained_variance(prediction, target, layer_norm: bool = False, mask=None):
    """Of each token [b, T]: 1 - ||prediction - target||^2 / ||target - mean||^2, with the mean of all b T tokens, or of
    those in `mask` [b, T].
    """
    if layer_norm:
        prediction, target = _layer_norm(prediction), _layer_norm(target)
    error = ((prediction - target) ** 2).sum(-1)
    return 1 - error / ((target - _mean(target, mask)) ** 2).sum(-1)


def statistics(changed, original, at_autoencoder: bool = False, mask=None) -> dict:
    """What `metrics` makes its numbers of, from one batch [b, T, d], or from its tokens in `mask` [b, T]."""
    mean = _mean(original, mask)
    average = partial(_mean, mask=mask)
    tokens = jnp.asarray(original[..., 0].size if mask is None else mask.sum(dtype=jnp.int32))
    variance = partial(explained_variance, mask=mask)
    out = {
        "tokens": tokens,
        "error": average(((changed - original) ** 2).sum(-1)) * tokens,
        "mean": mean,
        # Around the batch's own mean: float32 sums of squares lose their digits to a mean far from zero.
        "spread": average(((original - mean) ** 2).sum(-1)) * tokens,
        "explained_variance_paper": average(variance(changed, original)),
        "explained_variance_paper_ln": average(variance(changed, original, layer_norm=True)),
    }
    if at_autoencoder:
        norm = lambda a: jnp.sqrt((a * a).sum(-1))
        # A reconstruction that is zero has cosine 0 with everything.
        lengths = jnp.maximum(norm(changed) * norm(original), jnp.finfo(original.dtype).tiny)
        out |= {
            "explained_variance_swapped": average(variance(original, changed)),
            "explained_variance_swapped_ln": average(variance(original, changed, layer_norm=True)),
            "l2_ratio": average(norm(changed) / norm(original)),
            "cosine": average((changed * original).sum(-1) / lengths),
        }
    return out


POOLED = ("tokens", "error", "mean", "spread")


def merge(a: dict, b: dict) -> dict:
    """Statistics of the tokens of both, in float64 (Chan et al. 1983); what is not pooled is a mean over tokens."""
    a, b = ({name: np.asarray(value, np.float64) for name, value in part.items()} for part in (a, b))
    n = np.maximum(a["tokens"] + b["tokens"], 1)
    apart = b["mean"] - a["mean"]
    return {
        **{name: (a["tokens"] * a[name] + b["tokens"] * b[name]) / n for name in a if name not in POOLED},
        "tokens": a["tokens"] + b["tokens"],
        "error": a["error"] + b["error"],
        "mean": a["mean"] + apart * b["tokens"] / n,
        "spread": a["spread"] + b["spread"] + apart @ apart * a["tokens"] * b["tokens"] / n,
    }


def metrics(statistics: dict) -> dict[str, float]:
    """The numbers that the head of this file describes; NaN without tokens."""
    tokens, error, mean, spread = (np.asarray(statistics[name], np.float64) for name in POOLED)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = {"mse": error / (tokens * len(mean)), "explained_variance": 1 - error / spread}
    means = {name: value if tokens else np.nan for name, value in statistics.items() if name not in POOLED}
    return {name: float(value) for name, value in (pooled | means).items()}


def _layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def _mean(a, mask=None):
    """The mean of a [b, T, ...] over all tokens, or over those in `mask` [b, T]; 0 if there are none."""
    if mask is None:
        return a.mean((0, 1))
    kept = jnp.where(mask.reshape(*mask.shape, *(1,) * (a.ndim - 2)), a, 0)
    return kept.sum((0, 1)) / jnp.maximum(mask.sum(dtype=a.dtype), 1)


@partial(jax.jit, static_argnames=("hook", "selection"))
def _batch(lm, sae, tokens, kept, hook, selection):
    """{(place, view): statistics}; a context of one token has no positions but 0."""
    out = {}
    for place, pair in streams(lm, sae, tokens, hook, selection, kept).items():
        # What is counted is small, so all of it may lie as the contexts of the autoencoder do.
        original, changed = (jax.reshard(a, TOKENS) for a in pair)
        for view, at in VIEWS.items():
            if tokens[:, at].size:
                out[place, view] = statistics(changed[:, at], original[:, at], place == hook, kept[:, at])
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), out)


MEANINGS = {
    "explained_variance": """How much of the stream at a later place survives. Near 1 is good. It does not say whether
    what is lost mattered to the output.""",
}

EVALUATION = Evaluation(
    run,
    """The reconstruction takes the activation's place at every token that training read (not at padding, nor at what
    --skip-first and --skip-tokens leave out), and all numbers are over these tokens. All positions, position 0 alone
    (pos0_) and the others (no_pos0_). mse: mean over tokens and width, squared units of the stream;
    explained_variance: pooled over all tokens; _paper: mean over tokens of the ratio of each, from the mean of each
    batch of --later-layers.batch contexts; _ln: after LayerNorm without gain and bias; _swapped: input as prediction,
    output as target.""",
    Config,
    needs_lm=True,
    meanings=MEANINGS,
)
