"""How far the stream is from the original behind an autoencoder, layer by layer (Braun et al. 2024, sec. 3.3, app. B).

b contexts, T positions, d width. The reconstruction is at every position. Every number is given for all positions, for
position 0 alone (`pos0_`) and for the others (`no_pos0_`): GPT-2's stream is tens of times longer at position 0, so
there a squared error says little about the rest.

mse                            mean over b, T and d of (changed - original)^2, in squared units of the stream
explained_variance             1 - sum ||changed - original||^2 / sum ||original - E original||^2, sums over all tokens
explained_variance_paper       mean over tokens of 1 - ||changed - original||^2 / ||original - mean||^2, with the mean
                               of each batch, as in the paper's code; `_ln`: after LayerNorm without gain and bias
explained_variance_swapped     at the autoencoder alone: the same with the input as prediction and the output as
                               target, which is what the paper's figures show there; `_ln` too
l2_ratio, cosine               at the autoencoder alone: means over tokens of ||xhat|| / ||x|| and of their cosine
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.evals import latents
from jaxsae.lm.hooks import parse
from jaxsae.lm.model import LM, capture
from jaxsae.sae.struct import SAE

VIEWS = {"": slice(None), "pos0_": slice(0, 1), "no_pos0_": slice(1, None)}


def measure(lm: LM, sae: SAE, hook: str, tokens, batch: int = 8) -> dict[str, dict[str, float]]:
    """{place: {metric: value}} for the places of `places`, on token ids [b, T], `batch` contexts at once.

    The `_paper` and `_swapped` values depend on the batch, whose mean they use. A view of which all tokens are equal
    (position 0, where every context begins alike) has no variance to explain: its explained variances mean nothing.
    """
    total: dict = {}
    for part in latents.batches(tokens, batch):
        for key, new in jax.device_get(_batch(lm, sae, part, hook)).items():
            total[key] = merge(total[key], new) if key in total else new
    out: dict[str, dict[str, float]] = {place: {} for place in places(hook, lm.config.n_layer)}
    for (place, view), of_view in total.items():
        out[place] |= {f"{view}{name}": value for name, value in metrics(of_view).items()}
    return out


def places(hook: str, n_layer: int) -> list[str]:
    """`hook` itself, then the end of every block behind it (what enters the next block)."""
    at = parse(hook, n_layer)
    first = at.layer + (at.kind == "hook_resid_post")
    return [hook, *(f"blocks.{layer}.hook_resid_post" for layer in range(first, n_layer))]


def streams(lm: LM, sae: SAE, tokens, hook: str) -> dict[str, tuple]:
    """{place: (original, changed)}, [b, T, d] each, when the reconstruction takes the activation's place at `hook`."""
    here, *later = places(hook, lm.config.n_layer)
    original, _ = capture(lm, tokens, [here, *later])
    xhat = latents.reconstruct(sae, original[here])
    changed, _ = capture(lm, tokens, later, {here: lambda _: xhat})
    return {place: (original[place], {here: xhat, **changed}[place]) for place in (here, *later)}


def explained_variance(prediction, target, layer_norm: bool = False):
    """Of each token [b, T]: 1 - ||prediction - target||^2 / ||target - mean||^2, with the mean of all b T tokens."""
    if layer_norm:
        prediction, target = _layer_norm(prediction), _layer_norm(target)
    error = ((prediction - target) ** 2).sum(-1)
    return 1 - error / ((target - target.mean((0, 1))) ** 2).sum(-1)


def statistics(changed, original, at_autoencoder: bool = False) -> dict:
    """What `metrics` makes its numbers of, from one batch: [b, T, d] each."""
    mean = original.mean((0, 1))
    out = {
        "tokens": jnp.array(original.shape[0] * original.shape[1]),
        "error": ((changed - original) ** 2).sum(),
        "mean": mean,
        # Around the batch's own mean: float32 sums of squares lose their digits to a mean far from zero.
        "spread": ((original - mean) ** 2).sum(),
        "explained_variance_paper": explained_variance(changed, original).mean(),
        "explained_variance_paper_ln": explained_variance(changed, original, layer_norm=True).mean(),
    }
    if at_autoencoder:
        norm = lambda a: jnp.sqrt((a * a).sum(-1))
        # A reconstruction that is zero has cosine 0 with everything.
        lengths = jnp.maximum(norm(changed) * norm(original), jnp.finfo(original.dtype).tiny)
        out |= {
            "explained_variance_swapped": explained_variance(original, changed).mean(),
            "explained_variance_swapped_ln": explained_variance(original, changed, layer_norm=True).mean(),
            "l2_ratio": (norm(changed) / norm(original)).mean(),
            "cosine": ((changed * original).sum(-1) / lengths).mean(),
        }
    return out


POOLED = ("tokens", "error", "mean", "spread")


def merge(a: dict, b: dict) -> dict:
    """Statistics of the tokens of both, in float64 (Chan et al. 1983); what is not pooled is a mean over tokens."""
    a, b = ({name: np.asarray(value, np.float64) for name, value in part.items()} for part in (a, b))
    n = a["tokens"] + b["tokens"]
    apart = b["mean"] - a["mean"]
    return {
        **{name: (a["tokens"] * a[name] + b["tokens"] * b[name]) / n for name in a if name not in POOLED},
        "tokens": n,
        "error": a["error"] + b["error"],
        "mean": a["mean"] + apart * b["tokens"] / n,
        "spread": a["spread"] + b["spread"] + apart @ apart * a["tokens"] * b["tokens"] / n,
    }


def metrics(statistics: dict) -> dict[str, float]:
    """The numbers that the head of this file describes."""
    tokens, error, mean, spread = (np.asarray(statistics[name], np.float64) for name in POOLED)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = {"mse": error / (tokens * len(mean)), "explained_variance": 1 - error / spread}
    means = {name: value for name, value in statistics.items() if name not in POOLED}
    return {name: float(value) for name, value in (pooled | means).items()}


def _layer_norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


@partial(jax.jit, static_argnames="hook")
def _batch(lm, sae, tokens, hook):
    """{(place, view): statistics}; a context of one token has no positions but 0."""
    return {
        (place, view): statistics(changed[:, at], original[:, at], place == hook)
        for place, (original, changed) in streams(lm, sae, tokens, hook).items()
        for view, at in VIEWS.items()
        if tokens[:, at].size
    }
