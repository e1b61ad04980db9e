"""standard: reconstruction and downstream loss of an autoencoder, and of its weights without EMA, in one pass.

b contexts of a batch, C contexts in all, T positions, d width. Everything is computed for each token on the devices, in
float32, and summed on the host in float64; tokens that a metric does not count have 0.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.evals import downstream, reconstruction
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.latents import in_chunks, reconstruct_normalised
from jaxsae.evals.reconstruction import VIEWS
from jaxsae.evals.subject import Subject, by_tokens, put_in
from jaxsae.flags import NoFlags
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.normalise import denormalise, normalise

# Logits that exist at once on a device, four times over: on CPUs few enough for their caches.
ON_CPU, ELSEWHERE = 1 << 19, 1 << 26

# How results are flattened: the prefix of each autoencoder, and that of each view.
PREFIXES = {"exported": "", "raw": "raw_"}
VIEW_PREFIXES = {"all": "", "no_pos0": "no_pos0_"}

# What the picture shows by position.
PANELS = {"nmse": "NMSE", "l0": "L0", "kl": "KL (nats)", "delta_ce": "rise of the CE (nats)"}


def run(subject: Subject, config: NoFlags) -> dict:
    """The standard metrics, flat: `raw_` is the weights without EMA, `no_pos0_` all positions but 0, `_se` a standard
    error over contexts, `_by_position` a list over positions. What needs a language model is None without one, and so
    is what no token counts in.
    """
    del config
    measured = measure(subject)
    return {
        f"{PREFIXES[which]}{VIEW_PREFIXES[view]}{name}": value
        for which, views in measured.items()
        for view, metrics in views.items()
        for name, value in metrics.items()
    }


def measure(subject: Subject) -> dict:
    """{which: {view: {metric: value}}}, of the "exported" and, if there is EMA, the "raw" weights."""
    saes = {"exported": subject.sae} | ({} if subject.raw is None else {"raw": subject.raw})
    centers, contexts, positions, deviations = None, [], [], []
    for batch in subject.batches():
        x, (ids, real) = subject.activations(batch), subject.text(batch)
        centers = _centers(x, batch.kept, subject.sae.spec.normalise) if centers is None else centers
        numbers = saes, x, batch.kept, centers, subject.lm, ids, real
        tokens, deviation = jax.device_get(
            _per_token(*numbers, subject.hook, subject.selection, keeps_all=subject.keeps_all)
        )
        tokens = _first(tokens, batch.size)
        contexts.append(jax.tree.map(lambda a: {view: a[:, at].sum(1) for view, at in VIEWS.items()}, tokens))
        positions.append(jax.tree.map(lambda a: a.sum(0), tokens))
        deviations.append(jax.tree.map(lambda a: np.asarray(a, np.float64), deviation))
    contexts = jax.tree.map(lambda *parts: np.concatenate(parts), *contexts)
    positions, deviation = (jax.tree.map(lambda *parts: sum(parts), *trees) for trees in (positions, deviations))
    views = VIEWS if subject.lm is not None else {"all": VIEWS["all"]}
    scale, centers = subject.facts["mse_scale"], jax.device_get(centers)
    measured = {w: {v: _metrics(contexts, deviation, centers, w, v, scale) for v in views} for w in saes}
    for which, own in measured.items():
        own["all"] |= _by_position(positions, positions["saes"][which], deviation["normalised"])
    return measured


def _metrics(contexts: dict, deviation: dict, centers: dict, which: str, view: str, mse_scale: float) -> dict:
    """The metrics of one autoencoder on one view, from sums over each context [C] and over each position [T, d]."""
    take = lambda tree: {name: value[view] for name, value in tree.items() if view in value}
    own, shared, counts = (take(tree) for tree in (contexts["saes"][which], contexts["shared"], contexts["counts"]))
    kept, d = counts["kept"].sum(), deviation["normalised"].shape[1]
    parts = {}
    for unit, shift in deviation.items():
        # From the center of all positions to that of this view.
        moved = shift[VIEWS[view]].sum(0) + kept * (np.float64(centers[unit]["all"]) - centers[unit][view])
        error, square = contexts["saes"][which]["error"][unit][view], contexts["square"][unit][view][view]
        spread = reconstruction.spread_of(square.sum(), moved, max(kept, 1))
        parts[unit] = error, square, reconstruction.ratio(error.sum(), spread)
    error, square, nmse = parts["normalised"]
    out = {
        "loss": reconstruction.ratio(mse_scale * error.sum(), kept * d),
        "nmse": nmse,
        "l0": reconstruction.ratio(own["l0"].sum(), kept),
        "fvu": parts["lm"][2],
        "nmse_se": reconstruction.ratio_error(error, square, nmse),
    }
    if not shared:
        return out | dict.fromkeys((*downstream.NAMES, "delta_ce_se", "kl_se"))
    sums = lambda tree: {name: value.sum() for name, value in tree.items()}
    out |= downstream.metrics(sums(shared), sums(own), counts["predicted"].sum(), counts["real"].sum())
    delta = own["ce_substituted"] - shared["ce_original"]
    out["delta_ce_se"] = reconstruction.ratio_error(delta, counts["predicted"], out["delta_ce"])
    return out | {"kl_se": reconstruction.ratio_error(own["kl"], counts["real"], out["kl"])}


def _by_position(positions: dict, own: dict, deviation) -> dict[str, list[float | None] | None]:
    """Metrics of each position [T] of one autoencoder, from sums over contexts."""
    counts, square = positions["counts"], positions["square"]["normalised"]["all"]
    kept = counts["kept"]
    out = {
        "nmse": reconstruction.nmse_by_position(own["error"]["normalised"], square, deviation, kept),
        "l0": reconstruction.ratios(own["l0"], kept),
        "kl": None,
        "delta_ce": None,
    }
    if "kl" in own:
        delta = own["ce_substituted"] - positions["shared"]["ce_original"]
        out["kl"] = reconstruction.ratios(own["kl"], counts["real"])
        out["delta_ce"] = reconstruction.ratios(delta, counts["predicted"])
    return {f"{name}_by_position": values for name, values in out.items()}


def _first(tree, contexts: int):
    """The first `contexts` rows of every array, in float64."""
    return jax.tree.map(lambda a: np.asarray(a[:contexts], np.float64), tree)


@partial(jax.jit, static_argnames="kind")
def _centers(x, kept, kind: str):
    """Points near the means of x [b, T, d], {unit: {view: [d]}}: normalised, and in the units of the language model."""
    units = {"normalised": normalise(x, kind)[0], "lm": x}
    centers = {unit: reconstruction.centers(a, kept) for unit, a in units.items()}
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), centers)


@partial(jax.jit, static_argnames=("hook", "selection", "keeps_all"))
def _per_token(saes: dict, x, kept, centers, lm, tokens, real, hook, selection, keeps_all: bool = True):
    """Numbers [b, T] of each token of activations x [b@data, T, d], and sums [T, d] of their differences from a center.

    `kept` [b, T] says which tokens are reconstructed and count, `real` which are no padding. The losses need a language
    model; without one they are left out. `keeps_all`: only contexts that fill up the batch are not kept.
    """
    kind = saes["exported"].spec.normalise
    normal, mean, scale = normalise(x, kind)
    square, deviation = {}, {}
    for unit, a in (("normalised", normal), ("lm", x)):
        square[unit], deviation[unit] = reconstruction.squares(a, kept, centers[unit])
    each, substitutes, shared, counts = {}, {}, {}, {"kept": kept}
    for which, sae in saes.items():
        xhat, l0 = by_tokens(partial(reconstruct_normalised, sae, selection=selection), normal)
        substitutes[which] = put_in(denormalise(xhat, mean, scale), x, kept)
        error = lambda a, b: jnp.where(kept, ((a - b) ** 2).sum(-1), 0)
        errors = {"normalised": error(normal, xhat), "lm": error(x, substitutes[which])}
        each[which] = {"error": errors, "l0": jnp.where(kept, l0, 0)}
    if lm is not None:
        of_some = partial(_losses, hook=hook, keeps_all=keeps_all)
        shared, own, of_text = on_contexts(of_some, lm, tokens, real, kept, x, substitutes)
        each, counts = {which: values | own[which] for which, values in each.items()}, counts | of_text
    everywhere = lambda tree: jax.tree.map(lambda a: jax.reshard(a, REPLICATED), tree)
    out = {"square": square, "saes": each, "shared": shared, "counts": counts}
    return everywhere(out), everywhere(deviation)


def _losses(lm, tokens, real, kept, x, substitutes, hook, keeps_all: bool):
    """`downstream.losses` of a few contexts at a time, and which tokens count in them; padding has 0.

    What zero-ablation predicts in all contexts is computed once.
    """
    at_once = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    chunk = max(1, at_once // (tokens.shape[1] * lm.config.vocab_size))
    zero = None
    if keeps_all and downstream.zero_is_shared(lm, hook):
        (zero,) = downstream.log_probabilities(lm, tokens[:1], hook, [jnp.zeros_like(x[:1])])
    one = lambda tokens, kept, x, substitutes: downstream.losses(lm, tokens, hook, x, substitutes, zero, kept)
    shared, own = in_chunks(one, chunk, tokens, kept, x, substitutes)
    # A token is predicted if it is real, from one that is.
    predicted = jnp.pad(real[:, :-1] & real[:, 1:], ((0, 0), (0, 1)))
    counted = lambda losses: {
        name: jnp.where(predicted if name.startswith("ce_") else real, value, 0) for name, value in losses.items()
    }
    own = {which: counted(losses) for which, losses in own.items()}
    return counted(shared), own, {"real": real, "predicted": predicted}


def figure(result: dict, path: Path):
    """NMSE, L0, KL and the rise of the CE at each position; nothing of rows that have no positions.

    A line marks the length of the contexts that the autoencoder was trained on, if these are longer.
    """
    if result["kl_by_position"] is None:
        return
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 5.5), layout="constrained")
    trained = result.get("trained_context")
    for ax, (name, label) in zip(picture.subplots(2, 2, sharex=True).flat, PANELS.items()):
        values = [np.nan if value is None else value for value in result[f"{name}_by_position"]]
        ax.plot(values, color="0.15", linewidth=1.2, marker="." if len(values) < 3 else None)
        if trained and trained < len(values):
            ax.axvline(trained - 0.5, color="0.6", linewidth=1, linestyle="--")
            note = {"xy": (trained, 0.97), "xycoords": ax.get_xaxis_transform(), "va": "top", "fontsize": 8}
            ax.annotate(f" beyond the {trained} of training", color="0.4", **note)
        ax.set_ylabel(label)
        if name != "delta_ce":
            ax.set_ylim(bottom=0)
        ax.grid(color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in picture.axes[2:]:
        ax.set_xlabel("position in the context")
    picture.savefig(path, dpi=110)


EVALUATION = Evaluation(
    run,
    """NMSE, loss, L0 and FVU over the tokens that training read: all of every context but padding and what --skip-first
    and --skip-tokens leave out. NMSE, loss and L0 in normalised units, FVU in those of the language model. For the
    losses the reconstruction takes the activation's place at those tokens, and the others keep the language model's
    own; CE and KL are means over all tokens of the text, those too: CE over every predicted token, KL over every
    position. Zero-ablation has zeros at the same places. Sums over all tokens, then one ratio; standard errors over
    contexts.""",
    figure=figure,
)
