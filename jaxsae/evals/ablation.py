"""ablation: on how few outputs one latent has an effect (Gao et al. 2024, sec. 4.5).

At one token of a context a latent is taken out of the stream, and the logits of that token and of the next ones change
by u [T, V]. From each position the median over the vocabulary is taken away, because a shift of all logits changes no
prediction. The effect's sparsity is then

    S = (||u||_1 / ||u||_2)^2 / (T V)

S T V counts the outputs that are moved: S is 1 / (T V) if there is one, and 2 / pi if effects are Gaussian noise.
P tokens whose latents are ablated, one in each context, A ablations of each, T positions, V vocabulary, d width.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsae.errors import BadInput
from jaxsae.evals import latents
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.reconstruction import ratio_error
from jaxsae.evals.subject import Batch, Subject, at_positions, put_in, reconstruct
from jaxsae.lm.hooks import parse
from jaxsae.lm.model import LM, final, prefixes, unembed
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.kth_largest import kth_largest
from jaxsae.sae.layout import REPLICATED, TOKENS

# Tokens that a device runs at once (CPUs are slower at more), and logits.
TOKENS_AT_ONCE, LOGITS_AT_ONCE = 4096, 1 << 24
KINDS = ("latents", "channels", "directions")


@dataclass(frozen=True)
class Config:
    tokens: int = 48
    """Tokens whose latents are ablated, one in each context."""
    positions: int = 16
    """Positions whose logits are compared: that of the token, and those after it."""
    others: int = 32
    """Channels of the stream, and random directions, that are ablated at each token."""
    base: Literal["activation", "reconstruction"] = "activation"
    """What ablations start from: the activation, with the autoencoder's error, or the reconstruction."""
    seed: int = 0
    """Of the tokens, channels and directions."""

    def __post_init__(self):
        for name in ("tokens", "positions", "others"):
            if getattr(self, name) < 1:
                raise BadInput(f"--ablation.{name} is {getattr(self, name)}: give at least 1")


@jax.jit
def effect_sparsity(u):
    """The share of outputs that an ablation moves, from the differences of logits u [..., T, V]: (L1 / L2)^2 / (T V)
    after each position's median over V is taken away, [...]; 0 if nothing else is left.

        effect_sparsity(logits_ablated - logits)        # [A, T, V] -> [A]
    """
    u = jnp.asarray(u)
    u = u - _median(u)[..., None]
    l1, square = jnp.abs(u).sum((-2, -1)), (u * u).sum((-2, -1))
    return jnp.where(square > 0, l1 * l1 / jnp.where(square > 0, square, 1), 0) / (u.shape[-2] * u.shape[-1])


def _median(u):
    """The median over the last axis, found by counting: sorting a vocabulary is slow on CPUs."""
    V = u.shape[-1]
    low = u.min(-1)
    above = u - low[..., None]
    lower = kth_largest(lambda t: (above >= t[..., None]).sum(-1) > V // 2, above[..., 0])
    if V % 2:
        return low + lower
    larger = above > lower[..., None]
    upper = jnp.where(larger.sum(-1) < V // 2, lower, jnp.where(larger, above, jnp.inf).min(-1))
    return low + (lower + upper) / 2


def run(subject: Subject, config: Config) -> dict:
    """{kind: {"sparsity", "sparsity_se", "outputs", "sparsity_at_token", "ablations"}} for latents, channels and random
    directions, and both reference points.
    """
    random, effects = np.random.default_rng(config.seed), {kind: [] for kind in KINDS}
    contexts = min(config.tokens, subject.contexts)
    subject = replace(subject, tokens=-(-contexts * subject.source.count // len(subject.source)))
    for batch in subject.batches(title="ablation"):
        draws = _draws(random, batch, subject, config)
        for kind, values in _effects(subject, batch, draws, config).items():
            # [contexts, A, 2]: a context without a token to ablate has none.
            effects[kind] += [context[np.isfinite(context).all(1)] for context in values[: batch.size]]
    size = config.positions * subject.lm.config.vocab_size
    out = {kind: _summary([values for values in effects[kind] if len(values)], size) for kind in KINDS}
    tokens = sum(len(values) > 0 for values in effects["directions"])
    return {"tokens": tokens, **out, "gaussian": 2 / np.pi, "one_hot": 1 / size}


def _summary(effects: list[np.ndarray], size: int) -> dict[str, float | int | None]:
    """Means over ablations; the standard error is over tokens."""
    count = sum(map(len, effects))
    if not count:
        return dict.fromkeys(("sparsity", "sparsity_se", "outputs", "sparsity_at_token")) | {"ablations": 0}
    mean, at_token = (float(value) for value in sum(values.sum(0) for values in effects) / count)
    sums, counts = np.array([values[:, 0].sum() for values in effects]), np.array([len(values) for values in effects])
    return {
        "sparsity": mean,
        "sparsity_se": ratio_error(sums, counts, mean),
        "outputs": mean * size,
        "sparsity_at_token": at_token,
        "ablations": count,
    }


def _draws(random: np.random.Generator, batch: Batch, subject: Subject, config: Config) -> tuple:
    """For each context of a batch: scores [b, T] of its tokens, of which the largest that can be ablated is taken,
    channels [b, others] and directions [b, others, d]. They do not depend on how contexts are split into batches.
    """
    d, others, filled = subject.source.width, config.others, len(batch.mask)
    drawn = []
    for _ in range(batch.size):
        directions = random.normal(size=(others, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        channels = random.permutation(d)[: min(others, d)]
        drawn.append((random.random(subject.source.rows), channels, directions))
    return tuple(np.stack([*parts, *parts[:1] * (filled - batch.size)]) for parts in zip(*drawn))


def _effects(subject: Subject, batch: Batch, draws: tuple, config: Config) -> dict[str, np.ndarray]:
    """{kind: S of each ablation over all positions, and over the token's own [b, A, 2]}; NaN where there is none."""
    sae, (tokens, real) = subject.sae, subject.text(batch)
    scores, channels, directions = draws
    x = subject.activations(batch)
    at = _chosen(batch.kept, real, scores, config.positions)
    code = latents.code(sae, at_positions(x, at), subject.selection)
    base = _base(sae, x, batch.kept, config.base, subject.selection)
    there, used = jnp.asarray(at) >= 0, code.values != 0
    rows = _rows(sae, code.indices)
    scaled = code.values * code.scale[:, None]
    removed = {"latents": scaled[..., None] * rows, **_others(at_positions(base, at), channels, directions)}
    count = {kind: np.ones(a.shape[:2], bool) for kind, a in removed.items()} | {"latents": used}
    out = {}
    for kind in KINDS:
        values = _sparsities(subject.lm, tokens, base, removed[kind], at, subject.hook, config.positions)
        values = np.asarray(jax.reshard(values, REPLICATED), np.float64)
        counted = np.asarray(jax.reshard(count[kind] & there[:, None], REPLICATED))
        # What moves nothing was not there.
        out[kind] = np.where(counted[..., None] & (values > 0), values, np.nan)
    return out


@partial(jax.jit, static_argnames="positions")
def _chosen(kept, real, scores, positions: int):
    """The position of a token in each context, [b]: kept, not the first one, with `positions` real tokens from it on;
    -1 if there is none.
    """
    T = real.shape[1]
    last = T - positions
    followed = real[:, : last + 1] & real[:, positions - 1 :]
    allowed = kept[:, : last + 1] & followed & (jnp.arange(last + 1) > 0)
    best = jnp.where(allowed, jnp.asarray(scores)[:, : last + 1], -1).argmax(1)
    return jnp.where(allowed.any(1), best, -1)


@partial(jax.jit, static_argnames=("base", "selection"))
def _base(sae, x, kept, base: str, selection):
    return x if base == "activation" else put_in(reconstruct(sae, x, selection), x, kept)


@jax.jit
def _rows(sae, indices):
    """The decoder's rows [b@data, c, d] of latents [b@data, c]."""
    indices = jax.reshard(indices, REPLICATED)
    return jax.reshard(sae.as_used().W_dec.at[indices].get(out_sharding=REPLICATED), TOKENS)


@jax.jit
def _others(x, channels, directions):
    """What ablations of channels [b, A] and directions [b, A, d] take away from x [b@data, d]: [b@data, A, d] each."""
    x = x[:, None]
    axes = jax.nn.one_hot(channels, x.shape[-1], dtype=x.dtype)
    r = jnp.asarray(directions, x.dtype)
    return {"channels": x * axes, "directions": (x * r).sum(-1, keepdims=True) * r}


@partial(jax.jit, static_argnames=("hook", "positions"))
def _sparsities(lm, tokens, base, removed, at, hook: str, positions: int):
    return on_contexts(partial(_of_contexts, hook=hook, positions=positions), lm, tokens, base, removed, at)


def _of_contexts(lm: LM, tokens, base, removed, at, hook: str, positions: int):
    """S of each ablation over all positions, and over the first alone [p, A, 2], with `removed` [p, A, d] taken away
    from base [p, T, d] at positions `at` [p].
    """
    T, V = base.shape[1], lm.config.vocab_size
    at_once = max(1, min(TOKENS_AT_ONCE // T, LOGITS_AT_ONCE // (positions * V)))

    def of_context(context):
        tokens, base, removed, at = context
        start = jnp.maximum(at, 0)
        repeat = lambda streams: jnp.broadcast_to(tokens, (len(streams), T))
        logits = lambda streams: _logits(lm, repeat(streams), streams, start, hook, positions)
        here = (jnp.arange(T) == start)[:, None]
        original = logits(base[None])

        def of_some(removed):
            changed = logits(base - jnp.where(here, removed[:, None], 0)) - original
            # One after the other: their logits stay in the caches.
            return lax.map(lambda u: jnp.stack([effect_sparsity(u), effect_sparsity(u[:1])]), changed)

        return latents.in_chunks(of_some, at_once, removed)

    return lax.map(of_context, (tokens, base, removed, at))


def _logits(lm: LM, tokens, stream, start, hook: str, positions: int):
    """Logits [a, positions, V] from position `start` on, with streams [a, T, d] at the hook."""
    end = f"blocks.{lm.config.n_layer - 1}.hook_resid_post"
    if not parse(hook, lm.config.n_layer).residual:
        stream, hook = prefixes(lm, tokens, [end], {hook: lambda _: stream})[end], end
    x = final(lm, stream, hook)
    return unembed(lm, lax.dynamic_slice_in_dim(x, start, positions, axis=1))


def check(subject: Subject, config: Config):
    """Raises BadInput if no context is long enough."""
    if subject.source.rows <= config.positions:
        raise BadInput(
            f"--ablation.positions is {config.positions}, and contexts have {subject.source.rows} tokens: give a "
            "longer --context, or fewer positions"
        )


def figure(result: dict, path: Path):
    """Mean sparsity of the effects of each kind, over all positions and at the token itself, beside that of noise."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if result[kind]["sparsity"] is not None]
    if not kinds:
        return
    picture = Figure(figsize=(6.5, 3.2), layout="constrained")
    ax = picture.subplots()
    bars = (("sparsity", "all positions", "0.3", -0.19), ("sparsity_at_token", "the token's own", "0.7", 0.19))
    for name, label, color, shift in bars:
        values, at = [result[kind][name] for kind in kinds], np.arange(len(kinds)) + shift
        ax.barh(at, values, height=0.36, color=color, label=label)
        for y, value in zip(at, values):
            place = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            ax.annotate(f"{value:.3f}", (0, y), (4, 0), color="white" if shift < 0 else "black", **place)
    ax.axvline(result["gaussian"], color="0.5", linewidth=1, linestyle="--")
    note = {"xy": (result["gaussian"], 1), "xycoords": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    ax.annotate("Gaussian noise", color="0.4", fontsize=8, **note)
    labels = {"latents": "latents", "channels": "channels of the stream", "directions": "random directions"}
    ax.set_yticks(np.arange(len(kinds)), [labels[kind] for kind in kinds])
    ax.invert_yaxis()
    ax.set(xlabel="share of the outputs that an ablation moves", xlim=(0, 0.8))
    picture.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "sparsity": """Share of the model's outputs that one latent moves. Smaller is easier to describe; 0.64 is an
    effect spread like noise. It does not say that the effect is a meaningful one.""",
    "outputs": "The same as a number of outputs.",
}

EVALUATION = Evaluation(
    run,
    """At one random token of each of --ablation.tokens contexts (not the first token, and one that training read) each
    active latent is taken out by itself: value times decoder row is subtracted from the stream at that token. u are the
    differences of all logits at that token and the next ones, --ablation.positions in all; at each position the median
    over the vocabulary is taken away; sparsity = (L1 / L2)^2 / (positions times vocabulary), the share of outputs that
    are moved, and outputs their number; sparsity_at_token is the same of the token's own position. Means over all
    ablations, standard errors over tokens. Beside it the same of --ablation.others random channels of the stream, set
    to zero at the token, and of as many random directions, whose component is taken away. By default ablations start
    from the activation, with the autoencoder's error in it. Reference points: 2 / pi for Gaussian effects,
    1 / (positions times vocabulary) if one output moves.""",
    Config,
    needs_lm=True,
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
