"""standard: reconstruction and downstream loss of an autoencoder, and of its weights without EMA, in one pass.

b contexts of a batch, C contexts in all, T positions, d width. Everything is computed for each token on the devices, in
float32, and summed on the host in float64; tokens that a metric does not count have 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.evals import distributions, downstream, reconstruction
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.latents import in_chunks, reconstruct_and_count
from jaxsae.evals.reconstruction import VIEWS
from jaxsae.evals.standard_figure import figure
from jaxsae.evals.subject import ROWS, Subject, in_contexts, in_rows, put_in
from jaxsae.flags import NoFlags
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.normalise import denormalise, normalise_pair

# How results are flattened: the prefix of each autoencoder, and that of each view.
PREFIXES = {"exported": "", "raw": "raw_"}
VIEW_PREFIXES = {"all": "", "no_pos0": "no_pos0_"}

# What has a standard error, beside what needs no language model.
WITH_ERRORS = ("delta_ce", "ce_recovered", *downstream.COMPARISONS)


def run(subject: Subject, config: NoFlags) -> dict:
    """The standard metrics, flat: `raw_` is the weights without EMA, `no_pos0_` all positions but 0, `_se` a standard
    error over contexts, `_by_position` a list over positions, `_histogram` counts between `_histogram_edges`. What
    needs a language model is None without one, and so is what no token counts in.
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
    centers, contexts, positions, deviations, l0s, latents = None, [], [], [], {}, []
    # On every mesh the first batch has so many contexts, if there are so many.
    first = max(1, ROWS // 2 // subject.source.rows)
    for batch in subject.batches():
        arrays, (ids, real) = subject.source.activations(batch.host), subject.text(batch)
        centers = _centers(subject.sae, arrays, batch.kept, first) if centers is None else centers
        numbers = saes, arrays, batch.kept, centers, subject.lm, ids, real
        tokens, deviation, of_latents = jax.device_get(
            _per_token(*numbers, subject.hook, subject.selection, subject.keeps_all, subject.kind == "transcoder")
        )
        tokens = _first(tokens, batch.size)
        latents.append(jax.tree.map(lambda a: np.asarray(a, np.float64), of_latents))
        for which, own in tokens["saes"].items():
            counts = distributions.count_l0(own["l0"], tokens["counts"]["kept"])
            l0s[which] = distributions.add_counts(l0s.get(which, counts[:0]), counts)
        contexts.append(jax.tree.map(lambda a: {view: a[:, at].sum(1) for view, at in VIEWS.items()}, tokens))
        positions.append(jax.tree.map(lambda a: a.sum(0), tokens))
        deviations.append(jax.tree.map(lambda a: np.asarray(a, np.float64), deviation))
    contexts = jax.tree.map(lambda *parts: np.concatenate(parts), *contexts)
    total = lambda trees: jax.tree.map(lambda *parts: sum(parts), *trees)
    positions, deviation, latents = total(positions), total(deviations), total(latents)
    views = VIEWS if subject.lm is not None else {"all": VIEWS["all"]}
    scale, centers = subject.facts["mse_scale"], jax.device_get(centers)
    measured = {w: {v: _metrics(contexts, deviation, centers, w, v, scale) for v in views} for w in saes}
    for which, own in measured.items():
        own["all"] |= _by_position(positions, positions["saes"][which], deviation["normalised"])
        own["all"] |= distributions.of_l0(l0s[which])
        own["all"] |= distributions.of_latents(*latents[which], l0s[which].sum(), subject.sae.d_out)
    return measured


def _metrics(contexts: dict, deviation: dict, centers: dict, which: str, view: str, mse_scale: float | None) -> dict:
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
    unexplained = contexts["unexplained"][which][view][view]
    out = {
        "loss": mse_scale and reconstruction.ratio(mse_scale * parts["normalised"][0].sum(), kept * d),
        "nmse": parts["normalised"][2],
        "fvu": parts["lm"][2],
        "explained_variance": None if parts["lm"][2] is None else 1 - parts["lm"][2],
        "explained_variance_per_token": reconstruction.ratio(kept - unexplained.sum(), kept),
        "relative_reconstruction_bias": reconstruction.ratio(own["square"].sum(), own["product"].sum()),
    }
    error_of = reconstruction.ratio_error
    out |= {f"{name}_se": error_of(*parts[unit]) for name, unit in (("nmse", "normalised"), ("fvu", "lm"))}
    for name in ("l0", "cosine", "l2_ratio"):
        out[name] = reconstruction.ratio(own[name].sum(), kept)
        out[f"{name}_se"] = error_of(own[name], counts["kept"], out[name])
    return out | _losses_metrics(shared, own, counts)


def _losses_metrics(shared: dict, own: dict, counts: dict) -> dict[str, float | None]:
    """What needs a language model, from sums over each context [C], with standard errors; None without one."""
    if not shared:
        return dict.fromkeys((*downstream.NAMES, *(f"{name}_se" for name in WITH_ERRORS)))
    sums = lambda tree: {name: value.sum() for name, value in tree.items()}
    out = downstream.metrics(sums(shared), sums(own), counts["predicted"].sum(), counts["real"].sum())
    delta, gained = (other - shared["ce_original"] for other in (own["ce_substituted"], shared["ce_zero"]))
    terms = {"delta_ce": (delta, counts["predicted"]), "ce_recovered": (gained - delta, gained)}
    terms |= {name: (own[name], counts["real"]) for name in downstream.COMPARISONS}
    return out | {f"{name}_se": reconstruction.ratio_error(*terms[name], out[name]) for name in WITH_ERRORS}


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


def _normalised(sae, arrays):
    """`normalise_pair` of what a source gives, for `sae`."""
    return normalise_pair(arrays, sae.spec.normalise, sae.spec.sections, sae.scale_out)


@partial(jax.jit, static_argnames="first")
def _centers(sae, arrays, kept, first: int):
    """Points near the means of what should come out [b, T, d], the last of `arrays`, {unit: {view: [d]}}: normalised,
    and in the units of the language model; "first": in these too, of the `first` contexts alone.
    """
    units = {"normalised": _normalised(sae, arrays)[1], "lm": arrays[-1]}
    centers = {unit: reconstruction.centers(a, kept) for unit, a in units.items()}
    centers["first"] = reconstruction.centers(arrays[-1], kept & (jnp.arange(len(kept)) < first)[:, None])
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), centers)


@partial(jax.jit, static_argnames=("hook", "selection", "keeps_all", "mean_too"))
def _per_token(
    saes: dict, arrays, kept, centers, lm, tokens, real, hook, selection, keeps_all: bool = True, mean_too: bool = False
):
    """Numbers [b, T] of each token of activations (x,), or (what goes in, x that should come out), [b@data, T, d] each,
    sums [T, d] of the differences of x from a center, and sums [n] of each latent.

    `kept` [b, T] says which tokens are reconstructed and count, `real` which are no padding. The losses need a language
    model; without one they are left out. `keeps_all`: only contexts that fill up the batch are not kept. `mean_too`:
    the loss with the mean of x in its place, as an autoencoder "mean".
    """
    entering, normal, mean, scale = _normalised(saes["exported"], arrays)
    x = arrays[-1]
    square, deviation = {}, {}
    for unit, a in (("normalised", normal), ("lm", x)):
        square[unit], deviation[unit] = reconstruction.squares(a, kept, centers[unit])
    from_first = {view: ((x - point) ** 2).sum(-1) for view, point in centers["first"].items()}
    each, unexplained, latents, substitutes, shared, counts = {}, {}, {}, {}, {}, {"kept": kept}
    zero = lambda a: jnp.where(kept, a, 0)
    for which, sae in saes.items():
        *of_tokens, fired, written = reconstruct_and_count(sae, in_rows(entering), in_rows(kept), selection)
        xhat, l0 = (in_contexts(a, len(x)) for a in of_tokens)
        substitutes[which] = put_in(denormalise(xhat, mean, scale), x, kept)
        errors = {
            "normalised": zero(((normal - xhat) ** 2).sum(-1)),
            "lm": zero(((x - substitutes[which]) ** 2).sum(-1)),
        }
        each[which] = {"error": errors, "l0": zero(l0)}
        each[which] |= jax.tree.map(zero, reconstruction.similarities(substitutes[which], x))
        unexplained[which] = {view: reconstruction.quotient(errors["lm"], a) for view, a in from_first.items()}
        latents[which] = fired, written
    if lm is not None:
        of_some = partial(_losses, hook=hook, keeps_all=keeps_all)
        means = {"mean": jnp.where(kept[..., None], centers["lm"]["all"], x)} if mean_too else {}
        shared, own, of_text = on_contexts(of_some, lm, tokens, real, kept, x, substitutes | means)
        shared |= {"ce_mean": own.pop("mean")["ce_substituted"]} if mean_too else {}
        each, counts = {which: values | own[which] for which, values in each.items()}, counts | of_text
    everywhere = lambda tree: jax.tree.map(lambda a: jax.reshard(a, REPLICATED), tree)
    out = {"square": square, "unexplained": unexplained, "saes": each, "shared": shared, "counts": counts}
    return everywhere(out), everywhere(deviation), everywhere(latents)


def _losses(lm, tokens, real, kept, x, substitutes, hook, keeps_all: bool):
    """`downstream.losses` of a few contexts at a time, and which tokens count in them; padding has 0.

    What zero-ablation predicts in all contexts is computed once.
    """
    zero = None
    if keeps_all and downstream.zero_is_shared(lm, hook):
        (zero,) = downstream.log_probabilities(lm, tokens[:1], hook, [jnp.zeros_like(x[:1])])
    one = lambda tokens, kept, x, substitutes: downstream.losses(lm, tokens, hook, x, substitutes, zero, kept)
    shared, own = in_chunks(one, downstream.contexts_at_once(lm, tokens.shape[1]), tokens, kept, x, substitutes)
    predicted = downstream.predicted(real)
    counted = lambda losses: {
        name: jnp.where(predicted if name.startswith("ce_") else real, value, 0) for name, value in losses.items()
    }
    own = {which: counted(losses) for which, losses in own.items()}
    return counted(shared), own, {"real": real, "predicted": predicted}


MEANINGS = {
    "nmse": """Share of the variance of the activations that the reconstruction misses, after the normalisation that
    the autoencoder sees. 0 is perfect, 1 is no better than the mean. Autoencoders compare at equal L0 only. It does not
    say whether the language model needs what is missed.""",
    "fvu": """The same in the units of the language model: one minus explained variance, as other libraries report it.
    Tokens with long activations count more.""",
    "l0": """Latents that are active on a token, on average. Fewer are easier to read; at a smaller L0 every other
    number here gets worse.""",
    "dead_fraction": """Share of latents that were silent over the dead window at the end of training. Dead latents are
    parameters without use; a few percent are harmless. It does not say that the others mean something.""",
    "loss": "The reconstruction term of the training loss. It compares runs of one objective only.",
    "ce_original": "Cross-entropy of the language model itself, in nats per token: the bound for the next one.",
    "ce_substituted": "Its cross-entropy with the reconstruction in place of the activation.",
    "delta_ce": """The rise of the cross-entropy, in nats per token. 0 is perfect. Errors can cancel in it: a model that
    predicts other tokens equally well shows none.""",
    "kl": """KL divergence from the predictions of the model with the reconstruction to its own, in nats per token. 0 is
    perfect, and unlike the rise of the cross-entropy it sees every change of the predictions.""",
    "ce_recovered": """Share of the way back from zeros at this place to the activation itself. 1 is perfect. Zeros do
    great damage, so that even poor autoencoders are above 0.9: compare, and do not read it alone.""",
    "total_variation": "Half the sum of the changes of all probabilities, per position: from 0, no change, to 1.",
    "top1_consistency": "Share of positions at which the most probable token stays the same. 1 is perfect.",
    "ce_recovered_mean": """The same from the mean activation at this place instead of zeros, for transcoders: zeros are
    far from what a later layer has ever seen.""",
    "explained_variance": "1 - fvu, from sums over all tokens: the definition to compare with.",
    "explained_variance_per_token": """The mean over tokens of one minus each token's own ratio, as some libraries
    report it. Tokens near the mean weigh heavily, so it can be far from the other one.""",
    "cosine": "Mean cosine between the activation and its reconstruction. It does not see a wrong length.",
    "l2_ratio": "Mean ratio of the reconstruction's length to the activation's. Below 1, activations are shrunk.",
    "relative_reconstruction_bias": """How much longer or shorter reconstructions are than they should be: 1 is right,
    below 1 is shrinkage.""",
    "eval_dead_fraction": """Share of latents that fired on none of the tokens of this evaluation. With few tokens rare
    latents count as dead too.""",
    "densest_d": """Mean share of tokens on which the d densest latents fire, d the width of the activations. Latents
    that fire nearly always are seldom features.""",
}

EVALUATION = Evaluation(
    run,
    f"""NMSE, loss, L0 and FVU over the tokens that training read: all of every context but padding and what
    --skip-first and --skip-tokens leave out. NMSE, loss and L0 in normalised units, FVU in those of the language model.
    explained_variance is 1 - FVU, a ratio of sums; explained_variance_per_token the mean over tokens of
    1 - ||x - xhat||^2 / ||x - mean||^2, with the mean of the first {ROWS // 2:,} tokens. cosine and l2_ratio
    (||xhat|| / ||x||) are means over tokens, relative_reconstruction_bias is sum ||xhat||^2 / sum <xhat, x>; in the
    units of the language model. eval_dead_fraction: latents without a value above 0 on any token of this evaluation,
    eval_tokens of them; densest_d: the mean density of the d densest latents, d the width of the activations;
    histograms of log10 of density (share of tokens) and importance (mean squared norm of what a latent writes, in
    normalised units) are of the others. For the losses the reconstruction takes the activation's place at those tokens,
    and the others keep the language model's own; CE and KL are means over all tokens of the text, those too: CE over
    every predicted token, KL over every position. Zero-ablation has zeros at the same places. Sums over all tokens,
    then one ratio; standard errors over contexts. Of a transcoder all this is measured of its output, at the place that
    it replaces; ce_mean has there the mean activation of the first batch. Of a crosscoder all hook points are replaced
    at once.""",
    coders=("autoencoder", "transcoder", "crosscoder"),
    figure=figure,
    meanings=MEANINGS,
)
