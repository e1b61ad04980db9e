"""dark_matter: how much of an autoencoder's error a linear map of its input predicts (Engels et al. 2024).

N tokens, d width, q targets. The error x - xhat is not noise: a linear map of x predicts much of it, and nearly all of
its norm. What is left of the error no linear map finds. Maps are fitted on one half of the contexts by ridge
regression, from sums over tokens alone, and scored on the other half.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals import reconstruction
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.latents import reconstruct_normalised
from jaxsae.evals.subject import Subject, in_rows
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.normalise import normalise

# What is predicted, and which targets each is: d of the error itself, then two numbers.
PARTS = {"error": slice(None, -2), "norm": slice(-2, -1), "squared_norm": slice(-1, None)}


@dataclass(frozen=True)
class Config:
    ridge: float = 1e-4
    """Weight of the squared norm of the maps, in units of the mean variance of an input's coordinate."""

    def __post_init__(self):
        if not 0 < self.ridge < np.inf:
            raise BadInput(f"--dark-matter.ridge is {self.ridge}: give a positive number")


def run(subject: Subject, config: Config) -> dict:
    """R^2, on the second half of the contexts, of what maps fitted on the first half predict, and the NMSE that is left
    of the error without what they predict of it.
    """
    sums, centers, start, half = None, None, 0, subject.contexts // 2
    for batch in subject.batches(title="dark matter"):
        x = subject.activations(batch)
        if centers is None:
            centers = _centers(subject.sae, x, batch.kept, subject.selection)
        new = _sums(subject.sae, x, batch.kept, centers, half - start, subject.selection)
        new = jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(new))
        sums = new if sums is None else jax.tree.map(np.add, sums, new)
        start += batch.size
    scored = sums["score"]
    left, spread = squares_left(scored, *fit(sums["fit"], config.ridge)), spreads(scored["y"], scored["yy"], scored)
    r2 = {f"{name}_r2": _r2(left[part].sum(), spread[part].sum()) for name, part in PARTS.items()}
    # NMSE counts the whole error, its mean too, which a map predicts as well.
    error = scored["y"][-1] + scored["count"] * np.float64(jax.device_get(centers[1])[-1])
    dark, of_x = left[PARTS["error"]].sum(), spreads(scored["x"], np.diag(scored["xx"]), scored).sum()
    nmse = {"nmse": error, "nmse_linear": error - dark, "nmse_dark": dark}
    return {
        "tokens_fit": int(sums["fit"]["count"]),
        "tokens_score": int(scored["count"]),
        **r2,
        **{name: reconstruction.ratio(value, of_x) for name, value in nmse.items()},
    }


def check(subject: Subject, config: Config):
    """Raises BadInput for fewer than two contexts."""
    if subject.contexts < 2:
        raise BadInput("--metrics dark_matter needs at least two contexts: give more --tokens, or more data")


def moments(x, y, weight) -> dict:
    """Sums over tokens of x [N@data, d] and targets y [N@data, q], weighted by 0 or 1, [N@data]."""
    x, y = (jnp.where(weight[:, None] > 0, a, 0) for a in (x, y))
    product = lambda a, b: jnp.matmul(a.T, b, precision="highest", out_sharding=REPLICATED)
    sums = {"count": weight.sum(), "x": x.sum(0), "y": y.sum(0), "yy": (y * y).sum(0)}
    return sums | {"xx": product(x, x), "xy": product(x, y)}


def fit(moments: dict, ridge: float):
    """(W [d, q], means of x [d], means of y [q]): the ridge regression of y on x with an intercept, from their moments.

    Its penalty is `ridge` times the mean variance of a coordinate of x for each token.
    """
    n = max(moments["count"], 1)
    x, y = moments["x"] / n, moments["y"] / n
    covariance = moments["xx"] / n - np.outer(x, x)
    penalty = ridge * np.trace(covariance) / len(x)
    # Inputs that do not vary have nothing to predict with.
    penalized = covariance + (penalty or 1) * np.eye(len(x))
    return np.linalg.solve(penalized, moments["xy"] / n - np.outer(x, y)), x, y


def squares_left(moments: dict, W, x0, y0):
    """Sums over tokens of the squared errors of y0 + (x - x0) W, of each target: [q]."""
    n, x, y = moments["count"], moments["x"], moments["y"]
    xx = moments["xx"] - np.outer(x, x0) - np.outer(x0, x) + n * np.outer(x0, x0)
    xy = moments["xy"] - np.outer(x, y0) - np.outer(x0, y) + n * np.outer(x0, y0)
    yy = moments["yy"] - 2 * y * y0 + n * y0**2
    return yy - 2 * (W * xy).sum(0) + (W * (xx @ W)).sum(0)


def spreads(total, squares, moments: dict):
    """Sums of squared differences from the mean, from sums and sums of squares."""
    return squares - total**2 / max(moments["count"], 1)


def _r2(left: float, spread: float) -> float | None:
    return None if spread <= 0 else float(1 - left / spread)


def _pairs(sae, x, selection):
    """Normalised tokens [B@data, d] and their targets [B@data, d + 2], of activations x [b@data, T, d]."""
    x = in_rows(normalise(x, sae.spec.normalise)[0])
    error = x - reconstruct_normalised(sae, x, selection)[0]
    square = (error * error).sum(1, keepdims=True)
    return x, jnp.concatenate([error, jnp.sqrt(square), square], 1)


@partial(jax.jit, static_argnames="selection")
def _centers(sae, x, kept, selection):
    """Points near the means of x and y, ([d], [d + 2])."""
    flat = in_rows(kept)[:, None]
    mean = lambda a: jax.reshard(jnp.where(flat, a, 0).sum(0), REPLICATED) / jnp.maximum(flat.sum(), 1)
    return tuple(mean(a) for a in _pairs(sae, x, selection))


@partial(jax.jit, static_argnames="selection")
def _sums(sae, x, kept, centers, fitted, selection):
    """Moments of differences from `centers`, of the kept tokens of the first `fitted` contexts of x [b@data, T, d]
    (those to fit on), and of the others.
    """
    x, y = (a - center for a, center in zip(_pairs(sae, x, selection), centers))
    first = (jnp.arange(len(kept)) < fitted)[:, None]
    weights = {"fit": kept & first, "score": kept & ~first}
    return {name: moments(x, y, in_rows(weight).astype(x.dtype)) for name, weight in weights.items()}


def figure(result: dict, path: Path):
    """The R^2 of what is predicted, and the NMSE split into what a linear map predicts and what it does not."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7.5, 3.2), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(3, 2))
    names = {"error_r2": "the error", "norm_r2": "its norm", "squared_norm_r2": "its squared norm"}
    values = [result[name] or 0 for name in names]
    left.barh(list(names.values())[::-1], values[::-1], color="C0", height=0.55)
    for place, value in enumerate(values[::-1]):
        left.annotate(f" {value:.2f}", (max(value, 0), place), va="center")
    left.set(xlim=(min(0, *values), 1.1), xlabel="R² of a linear map of x")
    linear, dark = (result[f"nmse_{name}"] or 0 for name in ("linear", "dark"))
    for bottom, height, color, what in ((0, dark, "0.35", "not linear in x"), (dark, linear, "C0", "linear in x")):
        right.bar([0], [height], bottom=[bottom], color=color, width=0.5)
        right.annotate(f"{what}\n{height:.3f}", (0.3, bottom + height / 2), va="center", color=color, fontsize=9)
    right.set(ylabel="NMSE", xlim=(-0.35, 1.1), xticks=[])
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "error_r2": """Share of the error that a linear map of the activation predicts: features that are there, but in no
    latent. It does not say that the rest is noise.""",
    "norm_r2": """How well the size of the error is known from the activation. Near 1, some tokens are hard for every
    autoencoder of this kind.""",
    "nmse_dark": "What of the NMSE no linear map explains. It falls slowly with the number of latents.",
}

EVALUATION = Evaluation(
    run,
    """x and the error x - xhat in normalised units, at every token that training read. Ridge regressions with an
    intercept, fitted on the first half of the contexts (whole contexts, in the order of the evaluation) and scored on
    the second: error_r2 of all coordinates of the error together, norm_r2 of its norm, squared_norm_r2 of its squared
    norm; each is 1 - squared errors / squared differences from the mean of the second half. nmse_linear is the part of
    the NMSE that the map of the error predicts there, intercept included, nmse_dark what it leaves. The penalty is
    --dark-matter.ridge times the mean variance of a coordinate of x.""",
    Config,
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
