"""refinement: how far the encoder's values are from the best ones for the latents it chose (Gao et al. 2024, sec. 5.1).

The latents of each token and the decoder stay, and only the values change:

    minimise ||x - b_dec - sum_j v[j] W_dec[i[j]]||^2 over v >= 0

What a sparsity term takes away (shrinkage) shows as a rise of the values. B tokens, d width, n latents, c slots.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsae.errors import BadInput
from jaxsae.evals import latents, reconstruction, substitution
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.latents import in_chunks
from jaxsae.evals.subject import Subject, flat, put_in
from jaxsae.sae.layout import REPLICATED, TOKENS
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.sharded import over_mesh
from jaxsae.sae.types import SAE, partition_specs

STEPS = 1000
# Numbers of decoder rows [tokens, c, d] that exist at once on a device.
ROWS_AT_ONCE = 1 << 21
# Bins of the relative shift, from -1 (a value that became 0) to 1; larger ones are in the last.
BINS = 80


@dataclass(frozen=True)
class Config:
    tokens: int = 16_384
    """Tokens whose values are refined, if there are so many."""

    def __post_init__(self):
        if self.tokens < 1:
            raise BadInput(f"--refinement.tokens is {self.tokens}: give at least 1")


@partial(jax.jit, static_argnames="steps")
def refine(W, indices, values, x, steps: int = STEPS):
    """Non-negative least squares on the support of each token: the values v >= 0 that minimise
    ||x - sum_j v[j] W[indices[j]]||^2.

    W [n, d], indices [B, c], values [B, c] to start from, x [B, d] without the decoder's bias. Returns values [B, c];
    slots with value 0 are unused, and stay 0.

        code = jaxsae.encode(sae, x)
        better = refine(sae.as_used().W_dec, code.indices, code.values, x_normalised - sae.b_dec)
    """
    return _solve(jnp.asarray(W)[indices], jnp.asarray(values), jnp.asarray(x), steps)


def _solve(rows, values, x, steps: int = STEPS):
    """Accelerated projected gradient with restarts (O'Donoghue and Candes 2015): rows [B, c, d], values [B, c],
    x [B, d]. It ends when no token's step moves its values by more than a few units of rounding, or after `steps`.
    """
    used = values != 0
    rows = jnp.where(used[..., None], rows, 0)
    gram = jnp.einsum("bcd,bed->bce", rows, rows, precision="highest")
    target = jnp.einsum("bcd,bd->bc", rows, x, precision="highest")
    size = 1 / _curvature(gram, used)[:, None]
    tolerance = 4 * jnp.finfo(values.dtype).eps
    norm = lambda a: jnp.sqrt((a * a).sum(-1))

    def again(state):
        step, _, _, _, moved = state
        return (step < steps) & moved.any()

    def move(state):
        step, v, y, t, _ = state
        slope = jnp.einsum("bce,be->bc", gram, y, precision="highest") - target
        new = jnp.where(used, jnp.maximum(y - size * slope, 0), 0)
        # Momentum that leads uphill starts anew.
        restart = ((y - new) * (new - v)).sum(-1, keepdims=True) > 0
        after = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        ahead = jnp.where(restart, new, new + (t - 1) / after * (new - v))
        moved = norm(new - y) > tolerance * norm(new)
        return step + 1, new, ahead, jnp.where(restart, 1, after), moved

    start = jnp.where(used, jnp.maximum(values, 0), 0)
    first = jnp.ones_like(start[:, :1])
    return lax.while_loop(again, move, (0, start, start, first, first[:, 0] > 0))[1]


def _curvature(gram, used):
    """An upper bound of each matrix's largest eigenvalue, [B]: max |G| y / y bounds that of |G| for every y > 0, and
    power iteration makes it tight.
    """
    absolute = jnp.abs(gram)
    times = lambda y: jnp.where(used, jnp.einsum("bce,be->bc", absolute, y), 1)
    y = jnp.ones_like(gram[..., 0])
    for _ in range(8):
        y = times(y)
        y /= y.max(-1, keepdims=True)
        # Far smaller entries add nothing to the bound but rounding.
        y = jnp.maximum(y, 1e-3)
    return jnp.maximum(jnp.where(used, times(y) / y, 0).max(-1) * 1.0001, jnp.finfo(gram.dtype).tiny)


def run(subject: Subject, config: Config) -> dict:
    """NMSE and the rise of the cross-entropy with the encoder's values ("before") and with refined ones ("after"), and
    how the values shift.
    """
    subject = replace(subject, tokens=min(config.tokens, subject.tokens or config.tokens))
    total, center = {}, None
    for batch in subject.batches(title="refinement"):
        x = subject.activations(batch)
        normal, _, _ = normalise(x, subject.sae.spec.normalise)
        center = reconstruction.centers(normal, batch.kept)["all"] if center is None else center
        code = latents.code(subject.sae, flat(x), subject.selection)
        sums, streams = _batch(subject.sae, x, batch.kept, code.indices, code.values, jax.reshard(center, REPLICATED))
        sums = jax.device_get(sums)
        if subject.lm is not None:
            sums["ce"] = substitution.summed(subject, batch, {"original": x, **streams})
        sums = jax.tree.map(lambda a: np.asarray(a, np.float64), sums)
        total = jax.tree.map(np.add, total, _over_contexts(sums)) if total else _over_contexts(sums)
    return _numbers(total)


def _over_contexts(sums: dict) -> dict:
    return sums | {"ce": {name: a.sum() for name, a in sums.get("ce", {}).items()}}


def _numbers(total: dict) -> dict:
    spread = reconstruction.spread_of(total["square"], total["deviation"], max(total["kept"], 1))
    rises = substitution.rises(total["ce"]) if total["ce"] else {}
    nmse = {which: reconstruction.ratio(total["error"][which], spread) for which in ("before", "after")}
    delta_ce = {which: rises.get(which) for which in nmse}
    used, values, shift = (total[name] for name in ("used", "values", "shift"))
    mean = reconstruction.ratio(shift, used)
    return {
        "tokens": int(total["kept"]),
        "values": int(used),
        "nmse": nmse,
        "delta_ce": delta_ce,
        "shift": {
            "mean": mean,
            "std": None if mean is None else float(np.sqrt(max(total["square_shift"] / used - mean**2, 0))),
            "of_mean_value": reconstruction.ratio(shift, values),
            "became_zero": reconstruction.ratio(total["zeros"], used),
            "histogram": [int(count) for count in total["histogram"]],
        },
    }


@jax.jit
def _batch(sae: SAE, x, kept, indices, values, center):
    """Sums over the tokens that are kept, and the streams {"before", "after"} [b, T, d] in place of x."""
    normal, mean, scale = normalise(x, sae.spec.normalise)
    refined = _on_mesh(sae, indices, values, flat(normal))
    error, streams = {}, {}
    for which, v in (("before", values), ("after", refined)):
        xhat = latents.decode(sae, v, indices)
        xhat = lax.reshape(xhat, x.shape, out_sharding=TOKENS)
        error[which] = jnp.where(kept, ((normal - xhat) ** 2).sum(-1), 0).sum()
        streams[which] = put_in(denormalise(xhat, mean, scale), x, kept)
    square, deviation = reconstruction.squares(normal, kept, {"all": center})
    used = (values != 0) & flat(kept)[:, None]
    shift = jnp.where(used, refined - values, 0)
    relative = jnp.where(used, shift / jnp.where(used, values, 1), 0)
    bins = jnp.clip(((relative + 1) * (BINS / 2)).astype(jnp.int32), 0, BINS - 1)
    sums = {
        "kept": kept.sum(),
        "error": error,
        "square": square["all"].sum(),
        "deviation": deviation.sum(0),
        "used": used.sum(),
        "values": jnp.where(used, values, 0).sum(),
        "shift": shift.sum(),
        "square_shift": (shift * shift).sum(),
        "zeros": (used & (refined == 0)).sum(),
        "histogram": jnp.stack([(used & (bins == b)).sum() for b in range(BINS)]),
    }
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), sums), streams


def _on_mesh(sae: SAE, indices, values, x):
    """`refine` with the decoder's rows on the shards of the latents: x [B@data, d] normalised -> values [B@data, c]."""

    def local(layout, sae, indices, values, x):
        def of_chunk(indices, values, x):
            at, here = latents.on_shard(indices, layout, sae.n)
            rows = layout.sum_latents(jnp.where(here[..., None], W[at], 0))
            return _solve(rows, values, x - used.b_dec)

        used = sae.as_used()
        (W,) = layout.pvary(used.W_dec)
        chunk = max(1, ROWS_AT_ONCE // (values.shape[1] * x.shape[1]))
        return in_chunks(of_chunk, chunk, indices, values, x)

    specs = partition_specs(sae), TOKENS, TOKENS, TOKENS
    return over_mesh(local, specs, TOKENS)(sae, indices, values, x)


def figure(result: dict, path: Path):
    """How the values shift, as a share of each: those that become 0 are at -1."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5.5, 3.5), layout="constrained")
    ax = picture.subplots()
    counts = np.asarray(result["shift"]["histogram"], float)
    edges = np.linspace(-1, 1, BINS + 1)
    ax.stairs(counts / max(counts.sum(), 1), edges, fill=True, color="0.35")
    ax.axvline(0, color="0.6", linewidth=1, linestyle="--")
    ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1\nbecomes 0", "−0.5", "0", "0.5", "1\nor more"])
    ax.set(xlabel="shift of a value by refinement, as a share of it", ylabel="share of values", xlim=(-1, 1))
    ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "nmse": """Before and after the best values for the latents that the encoder chose. The gap is what the encoder's
    values cost, not its choice.""",
    "of_mean_value": """How much larger the best values are. Clearly above 0 is shrinkage, which an L1 penalty causes;
    near 0 is good.""",
    "delta_ce": """The rise of the cross-entropy before and after. Where it hardly falls, the choice of latents is
    what is missing.""",
}

EVALUATION = Evaluation(
    run,
    """The latents of each token and the decoder stay as they are; the values are refined by projected gradient, which
    starts at the encoder's and minimises the squared error of the normalised activation over values >= 0 (non-negative
    least squares on the support). Over the tokens that training read, --refinement.tokens of them. shift: refined
    minus encoder's value in normalised units, over all values that are not 0; of_mean_value: the same over the mean
    value, above 0 if the encoder shrinks; became_zero: share of values that refinement sets to 0; histogram: counts of
    the relative shift in 80 bins from -1 to 1, larger ones in the last. NMSE, and rise of the cross-entropy in nats per
    token if the reconstruction takes the activation's place, before and after.""",
    Config,
    figure=figure,
    meanings=MEANINGS,
)
