"""standard: reconstruction and downstream loss of an autoencoder, and of its weights without EMA, in one pass.

b contexts of a batch, C contexts in all, T positions, d width. Everything is computed for each token on the devices, in
float32, and summed on the host in float64.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.evals import downstream, reconstruction
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.latents import in_chunks, reconstruct_normalised
from jaxsae.evals.reconstruction import VIEWS
from jaxsae.evals.subject import Subject, by_tokens
from jaxsae.flags import NoFlags
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.normalise import denormalise, normalise

# Logits that exist at once on a device, four times over: on CPUs few enough for their caches.
ON_CPU, ELSEWHERE = 1 << 19, 1 << 26

# How results are flattened: the prefix of each autoencoder, and that of each view.
PREFIXES = {"exported": "", "raw": "raw_"}
VIEW_PREFIXES = {"all": "", "no_pos0": "no_pos0_"}


def run(subject: Subject, config: NoFlags) -> dict:
    """The standard metrics, flat: `raw_` is the weights without EMA, `no_pos0_` all positions but 0, `_se` a standard
    error over contexts. Those that need a language model are None without one.
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
        x = subject.activations(batch)
        centers = _centers(x, batch.mask, subject.sae.spec.normalise) if centers is None else centers
        tokens, deviation = jax.device_get(
            _per_token(saes, x, batch.mask, centers, subject.lm, batch.host, subject.hook, subject.selection)
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
        error, square = positions["saes"][which]["error"]["normalised"], positions["square"]["normalised"]["all"]
        by_position = reconstruction.nmse_by_position(error, square, deviation["normalised"], subject.contexts)
        own["all"]["nmse_by_position"] = by_position
    return measured


def _metrics(contexts: dict, deviation: dict, centers: dict, which: str, view: str, mse_scale: float) -> dict:
    """The metrics of one autoencoder on one view, from sums over each context [C] and over each position [T, d]."""
    take = lambda tree: {name: value[view] for name, value in tree.items() if view in value}
    own, shared = take(contexts["saes"][which]), take(contexts["shared"])
    T, d = deviation["normalised"].shape
    C, T = len(own["l0"]), len(range(T)[VIEWS[view]])
    ratios = {}
    for unit, shift in deviation.items():
        # From the center of all positions to that of this view.
        moved = shift[VIEWS[view]].sum(0) + C * T * (np.float64(centers[unit]["all"]) - centers[unit][view])
        error, square = contexts["saes"][which]["error"][unit][view], contexts["square"][unit][view][view]
        ratios[unit] = error, square, float(error.sum() / reconstruction.spread_of(square.sum(), moved, C * T))
    error, square, nmse = ratios["normalised"]
    out = {
        "loss": float(mse_scale * error.sum() / (C * T * d)),
        "nmse": nmse,
        "l0": float(own["l0"].sum() / (C * T)),
        "fvu": ratios["lm"][2],
        "nmse_se": reconstruction.ratio_error(error, square, nmse),
    }
    if not shared:
        return out | dict.fromkeys((*downstream.NAMES, "delta_ce_se", "kl_se"))
    sums = lambda tree: {name: value.sum() for name, value in tree.items()}
    out |= downstream.metrics(sums(shared), sums(own), C * (T - 1), C * T)
    delta = own["ce_substituted"] - shared["ce_original"]
    out["delta_ce_se"] = reconstruction.mean_error(delta / (T - 1)) if T > 1 else None
    return out | {"kl_se": reconstruction.mean_error(own["kl"] / T)}


def _first(tree, contexts: int):
    """The first `contexts` rows of every array, in float64."""
    return jax.tree.map(lambda a: np.asarray(a[:contexts], np.float64), tree)


@partial(jax.jit, static_argnames="kind")
def _centers(x, mask, kind: str):
    """Points near the means of x [b, T, d], {unit: {view: [d]}}: normalised, and in the units of the language model."""
    units = {"normalised": normalise(x, kind)[0], "lm": x}
    centers = {unit: reconstruction.centers(a, mask) for unit, a in units.items()}
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), centers)


@partial(jax.jit, static_argnames=("hook", "selection"))
def _per_token(saes: dict, x, mask, centers, lm, tokens, hook, selection):
    """Numbers [b, T] of each token of activations x [b@data, T, d], and sums [T, d] of their differences from a center.

    The losses need a language model; without one they are left out.
    """
    kind = saes["exported"].spec.normalise
    normal, mean, scale = normalise(x, kind)
    square, deviation = {}, {}
    for unit, a in (("normalised", normal), ("lm", x)):
        square[unit], deviation[unit] = reconstruction.squares(a, mask, centers[unit])
    each, substitutes, shared = {}, {}, {}
    for which, sae in saes.items():
        xhat, l0 = by_tokens(partial(reconstruct_normalised, sae, selection=selection), normal)
        substitutes[which] = denormalise(xhat, mean, scale)
        error = lambda a, b: ((a - b) ** 2).sum(-1)
        each[which] = {"error": {"normalised": error(normal, xhat), "lm": error(x, substitutes[which])}, "l0": l0}
    if lm is not None:
        shared, own = on_contexts(partial(_losses, hook=hook), lm, tokens, x, substitutes)
        each = {which: values | own[which] for which, values in each.items()}
    everywhere = lambda tree: jax.tree.map(lambda a: jax.reshard(a, REPLICATED), tree)
    return everywhere({"square": square, "saes": each, "shared": shared}), everywhere(deviation)


def _losses(lm, tokens, x, substitutes, hook):
    """`downstream.losses` of a few contexts at a time; what zero-ablation predicts in all contexts is computed once."""
    at_once = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    chunk = max(1, at_once // (tokens.shape[1] * lm.config.vocab_size))
    zero = None
    if downstream.zero_is_shared(lm, hook):
        (zero,) = downstream.log_probabilities(lm, tokens[:1], hook, [jnp.zeros_like(x[:1])])
    one = lambda tokens, x, substitutes: downstream.losses(lm, tokens, hook, x, substitutes, zero)
    return in_chunks(one, chunk, tokens, x, substitutes)


EVALUATION = Evaluation(
    run,
    """Every position of every context counts. NMSE, loss and L0 in normalised units, FVU in those of the language
    model; the reconstruction takes the activation's place at every position. Sums over all tokens, then one ratio;
    standard errors over contexts.""",
)
