"""progressive: another activation function at test time, the weights as they are (Gao et al. 2024, sec. 5.3, fig. 10).

TopK(k') keeps the k' largest positive pre-activations of each token, JumpReLU(theta) those above theta. A code is
progressive if fewer of its latents still reconstruct well. b contexts of a batch, T tokens each, B tokens, d width, P
points (K of them TopK's).

All points are computed from the pre-activations of some tokens at a time; these are the only arrays with an axis of all
latents.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsae.errors import BadInput
from jaxsae.evals import downstream, reconstruction
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.latents import in_chunks
from jaxsae.evals.subject import ROWS, Subject, by_tokens
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae import activation_functions, forward
from jaxsae.sae.all_latents import AllLatents
from jaxsae.sae.kth_largest import kth_largest
from jaxsae.sae.layout import REPLICATED, TOKENS
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.sharded import over_mesh
from jaxsae.sae.swap import check_can_swap
from jaxsae.sae.types import SAE, partition_specs

# Pre-activations that exist at once on a device.
PREACTIVATIONS = 1 << 24

CURVES = ("topk", "jumprelu")


@dataclass(frozen=True)
class Config:
    tokens: int = 8192
    """Tokens that the curves are measured on, if there are so many."""
    k: tuple[int, ...] = ()
    """The values of k'; default: the powers of two below n, n itself, and the autoencoder's k."""

    def __post_init__(self):
        if self.tokens < 1:
            raise BadInput(f"--progressive.tokens is {self.tokens}: give at least 1")
        if any(k < 1 for k in self.k):
            raise BadInput(f"--progressive.k has {min(self.k)}: give numbers of latents, at least 1")


def run(subject: Subject, config: Config) -> dict:
    """{"topk": {"k": [K], ...}, "jumprelu": {"theta": [...], ...}}, each with lists "l0", "nmse", "ce" and "kl" and
    the best points; and the cross-entropy of the language model itself. What needs a language model is None without
    one, and trained_k for families that were not trained with a k.
    """
    some = replace(subject, tokens=min(config.tokens, subject.tokens or config.tokens))
    ks = np.asarray(sorted({*(config.k or _grid(subject.sae))}), np.int32)
    total, center, thetas = None, None, None
    # Batches of the same contexts on every mesh: thresholds come from the first one.
    for batch in some.batches(max(1, ROWS // some.source.rows), "progressive"):
        x, (ids, real) = some.activations(batch), some.text(batch)
        if center is None:
            center = _center(x, batch.kept, some.sae.spec.normalise)
            thetas = np.unique(_thetas(some.sae, x, batch.kept, ks)).astype(x.dtype)
        sums = _sums(some.sae, x, batch.kept, center, ks, thetas, some.lm, ids, real, some.hook)
        sums = jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(sums))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    points, K = _metrics(total), len(ks)
    part = lambda at: {name: values and values[at] for name, values in points.items()}
    topk, jumprelu = part(slice(None, K)), part(slice(K, None))
    ce = None if subject.lm is None else reconstruction.ratio(total["ce_original"], total["predicted"])
    return {
        "tokens": some.rows,
        "trained_k": _trained_k(subject.sae),
        "ce_original": ce,
        "topk": {"k": ks.tolist(), **topk, **_best(topk)},
        "jumprelu": {"theta": thetas.tolist(), **jumprelu, **_best(jumprelu)},
    }


def check(subject: Subject, config: Config):
    """Raises BadInput for a family whose values are not its pre-activations, and for more latents than there are."""
    check_can_swap(subject.sae)
    if max(config.k, default=1) > subject.sae.n:
        raise BadInput(f"--progressive.k has {max(config.k)}: allowed is 1 to the number of latents, {subject.sae.n}")


def kth_values(sae: SAE, x, ks):
    """The k-th largest pre-activation of normalised tokens x [B@data, d], for each of ks [K]: [B@data, K], 0 if fewer
    are positive.
    """

    def local(layout, sae, x):
        return in_chunks(lambda x: _kth(_positive(sae, x, layout), ks, x, layout), _chunk(sae.n), x)

    return _over_tokens(local, sae, x)


def reconstructions(sae: SAE, x, ks, thetas):
    """(xhat [B@data, P, d], L0 [B@data, P]) of normalised tokens x [B@data, d]: TopK(k) for each of ks [K], then
    JumpReLU(theta) for each of thetas. Latents that tie with the k-th largest all count.
    """

    def local(layout, sae, x):
        def of_chunk(x):
            z = _positive(sae, x, layout)
            kth = _kth(z, ks, x, layout)
            above = jnp.zeros_like(kth, shape=(len(x), len(thetas))) + thetas
            # z >= kth and z > theta, as one comparison: nothing lies between a number and the next larger one.
            least = jnp.concatenate([kth, jnp.nextafter(above, jnp.full_like(above, jnp.inf))], 1)

            def point(least):
                v = jnp.where(z >= least[:, None], z, 0)
                return forward.reconstruct(used, v, AllLatents(), layout), layout.sum_latents((v > 0).sum(1))

            return jax.tree.map(lambda a: a.swapaxes(0, 1), lax.map(point, least.T))

        used = sae.as_used()
        return in_chunks(of_chunk, _chunk(sae.n), x)

    return _over_tokens(local, sae, x)


def _over_tokens(local, sae: SAE, x):
    return over_mesh(local, (partition_specs(sae), TOKENS), TOKENS)(sae, x)


def _chunk(n: int) -> int:
    return max(1, PREACTIVATIONS // n)


def _positive(sae: SAE, x, layout):
    """Pre-activations of a shard [B, n], 0 if negative."""
    return jax.nn.relu(forward.preacts_of(sae, x, AllLatents(), layout).pre)


def _kth(z, ks, x, layout):
    """The k-th largest value of each row of z [B, n] over all shards, of tokens x [B, d]: the same on all, [B, K]."""

    def of(k):
        enough = lambda t: layout.sum_latents((z >= t[:, None]).sum(-1, dtype=jnp.int32)) >= k
        return kth_largest(enough, jnp.zeros_like(x[:, 0]))

    # One after the other: together they would compare as many copies of z.
    return lax.map(of, jnp.asarray(ks)).T


def _grid(sae: SAE) -> list[int]:
    return [*(1 << i for i in range((sae.n - 1).bit_length())), _trained_k(sae) or 1, sae.n]


def _trained_k(sae: SAE) -> int | None:
    """The k of families that have one."""
    return None if activation_functions.get(sae.spec.activation).dense else sae.spec.k


@partial(jax.jit, static_argnames="kind")
def _center(x, kept, kind: str):
    center = reconstruction.centers(normalise(x, kind)[0], kept)
    return {"all": jax.reshard(center["all"], REPLICATED)}


@jax.jit
def _thetas(sae, x, kept, ks):
    """Thresholds whose L0 is about each of ks: means over tokens of the k-th largest pre-activation, [K]."""
    kth = by_tokens(lambda x: kth_values(sae, x, ks), normalise(x, sae.spec.normalise)[0])
    kept = jax.reshard(kept, TOKENS)[..., None]
    total = jax.reshard(jnp.where(kept, kth, 0).sum((0, 1)), REPLICATED)
    return total / jnp.maximum(jax.reshard(kept.sum(), REPLICATED), 1)


@partial(jax.jit, static_argnames="hook")
def _sums(sae, x, kept, center, ks, thetas, lm, tokens, real, hook):
    """Sums over the tokens of activations x [b@data, T, d] that `kept` and `real` [b, T] count, of each point [P]."""
    normal, mean, scale = normalise(x, sae.spec.normalise)
    xhat, l0 = by_tokens(lambda x: reconstructions(sae, x, ks, thetas), normal)
    kept = jax.reshard(kept, TOKENS)
    square, deviation = reconstruction.squares(normal, kept, center)
    of_points = lambda a: jnp.where(kept[..., None], a, 0).sum((0, 1))
    out = {
        "kept": kept.sum(),
        "square": square["all"].sum(),
        "deviation": deviation.sum(0),
        "error": of_points(((normal[:, :, None] - xhat) ** 2).sum(-1)),
        "l0": of_points(l0),
    }
    if lm is not None:
        raw = denormalise(xhat, mean[..., None], scale[..., None])
        losses = on_contexts(partial(_losses, hook=hook), lm, tokens, real, kept, x, raw)
        out |= {name: a.sum((0, 1)) for name, a in losses.items()}
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), out)


def _losses(lm, tokens, real, kept, x, xhat, hook):
    """Losses of each token with each point's reconstruction [b, T, P, d] put in at the tokens in `kept`; 0 for tokens
    that do not count.
    """

    def of_contexts(tokens, real, kept, x, xhat):
        predict = lambda activation: jax.nn.log_softmax(downstream.logits_with(lm, tokens, hook, activation))
        counted = downstream.predicted(real)
        original = predict(x)

        def point(xhat):
            log_q = predict(jnp.where(kept[..., None], xhat, x))
            ce = jnp.where(counted, downstream.cross_entropy(log_q, tokens), 0)
            return ce, jnp.where(real, downstream.kl(original, log_q), 0)

        ce, kl = (jnp.moveaxis(a, 0, -1) for a in lax.map(point, jnp.moveaxis(xhat, 2, 0)))
        own = jnp.where(counted, downstream.cross_entropy(original, tokens), 0)
        return {"ce_original": own, "ce": ce, "kl": kl, "predicted": counted, "real": real}

    return in_chunks(of_contexts, downstream.contexts_at_once(lm, tokens.shape[1]), tokens, real, kept, x, xhat)


def _metrics(total: dict) -> dict[str, list[float | None] | None]:
    """Metrics of all points from sums over tokens."""
    spread = reconstruction.spread_of(total["square"], total["deviation"], max(total["kept"], 1))
    each = lambda name, count: [reconstruction.ratio(value, count) for value in total[name]]
    out = {"l0": each("l0", total["kept"]), "nmse": each("error", spread), "ce": None, "kl": None}
    if "ce" in total:
        out |= {"ce": each("ce", total["predicted"]), "kl": each("kl", total["real"])}
    return out


def _best(points: dict) -> dict[str, float | None]:
    """The least NMSE and cross-entropy of a curve, and the L0 of each; None of what was not measured."""
    out = {}
    for name in ("nmse", "ce"):
        known = [(value, l0) for value, l0 in zip(points[name] or (), points["l0"]) if value is not None]
        out[f"least_{name}"], out[f"l0_of_least_{name}"] = min(known, default=(None, None))
    return out


def figure(result: dict, path: Path):
    """NMSE and cross-entropy against L0, a line for each curve; the L0 of training is marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    panels = {"nmse": "NMSE"} | ({} if result["ce_original"] is None else {"ce": "CE (nats)"})
    picture = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for ax, (name, label) in zip(np.ravel(picture.subplots(1, len(panels))), panels.items()):
        for curve, title, style in zip(CURVES, ("TopK(k')", "JumpReLU(θ)"), ("-", "--")):
            values = result[curve]
            ax.plot(values["l0"], values[name], style, marker="o", markersize=3, label=title, linewidth=1.2)
        if (k := result["trained_k"]) is not None:
            ax.axvline(k, color="0.6", linewidth=1, linestyle=":")
            note = {"xy": (k, 0.94), "xycoords": ax.get_xaxis_transform(), "fontsize": 8}
            ax.annotate(f" k {k} of training", color="0.4", **note)
        if name == "ce":
            ax.axhline(result["ce_original"], color="0.6", linewidth=1)
            note = {"xy": (0.01, result["ce_original"]), "xycoords": ax.get_yaxis_transform(), "fontsize": 8}
            ax.annotate("the language model itself", va="bottom", color="0.4", **note)
        else:
            ax.set_yscale("log")
            ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:.2g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set(xscale="log", xlabel="L0", ylabel=label)
        ax.grid(color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    picture.axes[0].legend(frameon=False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "least_nmse": """The smallest NMSE of the curve; it should lie near the L0 of training. Far from it, the autoencoder
    does not tell which of its latents matter most.""",
    "least_ce": "The smallest cross-entropy of the curve. It need not lie where the NMSE is smallest.",
}

EVALUATION = Evaluation(
    run,
    """Weights and biases as they are; the activation function alone is swapped. topk: the k' largest positive
    pre-activations of each token, for k' the powers of two up to n and the k of training; latents that tie with the
    k'-th all count. jumprelu: pre-activations above one threshold theta for all latents; thetas are the means over the
    first 4,096 tokens of the k'-th largest positive pre-activation, for the same k' (0 for tokens that have fewer). l0
    is measured: the mean number of values above 0. NMSE in normalised units, CE and KL in nats, with the reconstruction
    at every token that training read; on the first --progressive.tokens tokens.""",
    Config,
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
