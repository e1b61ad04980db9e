"""synthetic: how well latents are the features that synthetic activations were made of. b contexts of a batch, T rows
each, B rows, d width, n latents, F features, P pairs.

Features are paired with latents by their directions, one to one. What a latent says of a row is then compared with
whether its feature fired there, and how strongly.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.data.synthetic import SyntheticSource
from jaxsae.errors import BadInput
from jaxsae.evals import latents, matching
from jaxsae.evals.geometry import directions
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject, in_rows
from jaxsae.flags import NoFlags
from jaxsae.sae.decoder import row_norms
from jaxsae.sae.layout import REPLICATED

# Values of latents that exist at once on a device.
VALUES = 1 << 24


def run(subject: Subject, config: NoFlags) -> dict:
    """Means over features, and lists over them, the most frequent first."""
    del config
    sae, source = subject.sae, subject.source
    rows = directions(sae)
    real = np.asarray(source.truth.directions, rows.dtype)
    features, pairs, cosines = matching.match(real, rows)
    sums = None
    for batch in subject.batches(title="synthetic"):
        new = _sums(sae, *source.made(batch.host), batch.kept, features, pairs, subject.selection)
        new = jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(new))
        sums = new if sums is None else jax.tree.map(np.add, sums, new)
    frequency = sums.pop("frequency") / subject.rows
    dead = float((sums.pop("fired") == 0).mean())
    of_pairs = scores(sums, subject.rows) | {"cosine": cosines}
    own = {name: _of_features(values, features, len(real)) for name, values in of_pairs.items()}
    mean = lambda values: float(values.mean()) if len(values) else None
    shrinkage = of_pairs["shrinkage"][sums["both"] > 0]
    return {
        "features": len(real),
        "latents": sae.n,
        "mcc": mean(own["cosine"]),
        **{name: mean(own[name][frequency > 0]) for name in ("correlation", "precision", "recall", "f1")},
        "uniqueness": len(np.unique(matching.nearest_rows(real, rows, 1)[0])) / len(real),
        "shrinkage": mean(shrinkage),
        "dead_fraction": dead,
        "by_feature": {"frequency": frequency.tolist()}
        | {name: own[name].tolist() for name in ("cosine", "correlation", "precision", "recall", "f1")},
    }


def check(subject: Subject, config: NoFlags):
    """Raises BadInput for activations whose features are not known."""
    if not isinstance(subject.source, SyntheticSource):
        raise BadInput(
            "--metrics synthetic needs activations whose features are known: train with --activations synthetic:NAME, "
            "or give it here"
        )
    if subject.source.world.manifold > 1 or not subject.source.world.active:
        raise BadInput("--metrics synthetic needs features that are directions: of these activations they are not")
    if subject.source.width != subject.sae.d:
        raise BadInput(
            f"the autoencoder has width {subject.sae.d}, and the synthetic activations {subject.source.width}"
        )


def scores(sums: dict, rows: float) -> dict[str, np.ndarray]:
    """What sums over `rows` rows, [P] each, say of each pair, [P]; 0 where there is nothing to divide by."""
    ratio = lambda a, b: np.where(b > 0, a / np.where(b > 0, b, 1), 0)
    both, latent, feature = sums["both"], sums["latent"], sums["feature"]
    spread = lambda name: np.maximum(sums[f"{name}_square"] - sums[f"{name}_sum"] ** 2 / rows, 0)
    covariance = sums["product"] - sums["latent_sum"] * sums["feature_sum"] / rows
    return {
        "correlation": ratio(covariance, np.sqrt(spread("latent") * spread("feature"))),
        "precision": ratio(both, latent),
        "recall": ratio(both, feature),
        "f1": ratio(2 * both, latent + feature),
        "shrinkage": 1 - ratio(sums["latent_of_both"], sums["feature_of_both"]),
    }


def _of_features(values, features, count: int):
    """Values of pairs as values of all features: 0 for those that are in no pair."""
    out = np.zeros(count)
    out[features] = values
    return out


@partial(jax.jit, static_argnames="selection")
def _sums(sae, x, magnitudes, kept, features, pairs, selection):
    """Sums over the kept rows of activations x [b@data, T, d] of each pair [P]: `magnitudes` [b@data, T, F] are those
    of the features, `features` and `pairs` [P] say which feature and which latent a pair has. `frequency` [F] and
    `fired` [n] count the rows on which a feature, or a latent, is not 0.
    """
    x, kept, z = in_rows(x), in_rows(kept), in_rows(magnitudes)
    values, scale = latents.columns(sae, x, pairs, selection, max(1, VALUES // sae.n))
    norms = jax.reshard(row_norms(sae.as_used().W_dec)[:, 0], REPLICATED)[pairs]
    z = jnp.where(kept[:, None], z, 0)
    v = jnp.where(kept[:, None], values * scale[:, None] * norms, 0)
    f = z[:, features].astype(v.dtype)
    both = (v > 0) & (f > 0)
    of_pairs = {"both": both, "latent": v > 0, "feature": f > 0, "product": v * f}
    of_pairs |= {"latent_sum": v, "feature_sum": f, "latent_square": v * v, "feature_square": f * f}
    of_pairs |= {"latent_of_both": jnp.where(both, v, 0), "feature_of_both": jnp.where(both, f, 0)}
    sums = {name: a.sum(0) for name, a in of_pairs.items()} | {"frequency": (z > 0).sum(0)}
    sums["fired"] = latents.counts(sae, x, kept, selection)
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), sums)


def figure(result: dict, path: Path):
    """Of each feature, how well its latent points and fires, against how often it fires itself."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8.5, 3.4), layout="constrained")
    own = {name: np.asarray(values) for name, values in result["by_feature"].items()}
    seen = own["frequency"] > 0
    means = {"cosine": f"cosine (MCC {result['mcc']:.3f})", "f1": f"F1 (mean {result['f1'] or 0:.3f})"}
    for ax, (name, label) in zip(picture.subplots(1, 2), means.items()):
        ax.scatter(own["frequency"][seen], own[name][seen], s=8, color="C0", alpha=0.6, linewidths=0)
        ax.set(xscale="log", xlabel="share of rows on which the feature fires", ylabel=label, ylim=(-0.02, 1.02))
        ax.grid(color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "mcc": """Mean cosine of the features with their latents. 1 is perfect recovery; it is known here because the
    features were made.""",
    "f1": "Whether a latent fires when its feature does. 1 is perfect.",
    "uniqueness": "Whether features have latents of their own. Below 1, several features share one.",
    "shrinkage": "How much smaller latents' values are than the features' magnitudes. 0 is right.",
}

EVALUATION = Evaluation(
    run,
    """Features are paired with latents one to one, with the largest summed cosine between the features' directions and
    the unit rows of the decoder; a feature without a latent counts 0. mcc: the mean cosine over features. On the rows
    of the evaluation, means over the features that fire on any: correlation of a feature's magnitudes with its latent's
    values (in the units of the activations, times the norm of the decoder's row); precision, recall and f1 of the
    latent's value being above 0, for the feature firing. uniqueness: different latents among those nearest to the
    features, divided by the features. shrinkage: 1 - sum of values / sum of magnitudes over rows on which both are
    above 0, mean over pairs. dead_fraction: latents that are 0 on all rows.""",
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
