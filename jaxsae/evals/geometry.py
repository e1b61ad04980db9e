"""geometry: which latents are alive, and how near their directions are to others (Braun et al. 2024, sec. 3.1, 3.3.3,
app. G). n, m latents, a of them alive, d width.

Cosines are signed. "Nearest" is not symmetric: it is asked for the rows of the first dictionary.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae import interop
from jaxsae.distributed.mesh import replicate
from jaxsae.errors import BadInput
from jaxsae.evals import latents
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject, in_rows
from jaxsae.precision import matmul
from jaxsae.sae.layout import DATA, LATENT, REPLICATED
from jaxsae.sae.types import SAE

# Rows of the second dictionary whose cosines with the first exist at once, and cosines in all, on a device.
BLOCK, COSINES = 1024, 1 << 26
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Config:
    other: str | None = None
    """A second autoencoder, of the same width, whose directions are searched for the nearest ones."""


def run(subject: Subject, config: Config) -> dict:
    """Living latents, their frequencies, and the largest cosines of their directions: means and quantiles."""
    frequency = frequencies(subject)
    indices = alive(frequency)
    out = {
        "alive": len(indices),
        "alive_fraction": len(indices) / len(frequency),
        "frequency": summary(frequency[indices]),
    }
    rows = directions(subject.sae, indices)
    if len(indices) > 1:
        out["nearest_other"] = summary(nearest_other(rows))
    if config.other is not None and len(indices):
        out["nearest_in_other"] = summary(nearest(rows, directions_of(config.other, subject)))
    return out


def check(subject: Subject, config: Config):
    """Raises BadInput for a second autoencoder that cannot be compared."""
    check_other(subject, "--geometry.other", config.other)


def check_other(subject: Subject, flag: str, path: str | None):
    """Raises BadInput for a second autoencoder at `path`, of a flag, that is not there or has another width."""
    if path is None:
        return
    _, d = interop.shape(path)
    if d != subject.sae.d:
        raise BadInput(f"{flag} {path} has width {d}, and this autoencoder {subject.sae.d}")


def directions_of(path: str, subject: Subject):
    """Unit decoder rows [m, d] of a second autoencoder, on every device: m need not divide over the mesh."""
    return directions(replicate(interop.load(path), subject.mesh))


def frequencies(subject: Subject) -> np.ndarray:
    """Share of the tokens that are kept on which each latent has a value other than 0: float64 [n]."""
    total = np.zeros(subject.sae.n, np.int64)
    with jax.set_mesh(subject.mesh):
        for batch in subject.batches(title="geometry"):
            total += np.asarray(_counts(subject.sae, subject.activations(batch), batch.kept, subject.selection))
    return total / max(subject.rows, 1)


def alive(frequencies) -> np.ndarray:
    """Indices of the latents that were active at least once (the paper: over 500 thousand tokens, weights at rest)."""
    return np.flatnonzero(np.asarray(frequencies) > 0)


def directions(sae: SAE, indices=None):
    """What latents write, as unit rows on every device of the mesh that is set: [n, d], or [a, d] of `indices` [a]."""
    indices = np.arange(sae.n) if indices is None else np.asarray(indices)
    W = sae.W_dec.at[indices].get(out_sharding=REPLICATED)
    return W / jnp.maximum(jnp.sqrt((W * W).sum(1, keepdims=True)), 1e-12)


def nearest(a, b, block: int = BLOCK):
    """The largest cosine of each row of a [n, d] with a row of b [m, d], unit rows both: [n].

    Rows of a are split over the devices of the mesh that is set; cosines with `block` rows of b exist at once.
    """
    return _nearest(a, b, False, block)


def nearest_other(a, block: int = BLOCK):
    """The largest cosine of each unit row of a [n, d] with another row of a: [n] (-inf if there is no other)."""
    return _nearest(a, a, True, block)


def summary(values) -> dict[str, float]:
    """The mean and quantiles of a sample."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return {}
    return {"mean": float(values.mean())} | {f"q{q:.2f}": float(np.quantile(values, q)) for q in QUANTILES}


@partial(jax.jit, static_argnames="selection")
def _counts(sae, x, kept, selection):
    """On how many tokens of x [b, T, d], of those in `kept` [b, T], each latent is active: int32 [n]."""
    count = latents.counts(sae, in_rows(x), in_rows(kept), selection)
    return jax.reshard(count, REPLICATED)


@partial(jax.jit, static_argnames=("others", "block"))
def _nearest(a, b, others: bool, block: int):
    n, m = len(a), len(b)
    mesh = jax.sharding.get_abstract_mesh()
    rows = jnp.pad(a, ((0, -n % mesh.size if mesh.shape else 0), (0, 0)))
    rows = jax.reshard(rows, P((DATA, LATENT))) if mesh.shape else rows
    block = min(block, m, max(1, COSINES * (mesh.size if mesh.shape else 1) // n))

    def largest(best, part):
        b, start = part
        cosines = matmul(rows, b.T)
        number = start + jnp.arange(block)
        left_out = number >= m
        if others:
            left_out = left_out | (jnp.arange(len(rows))[:, None] == number)
        return jnp.maximum(best, jnp.where(left_out, -jnp.inf, cosines).max(1)), None

    parts = jnp.pad(b, ((0, -m % block), (0, 0))).reshape(-1, block, b.shape[1])
    best = lax.scan(largest, jnp.full_like(rows[:, 0], -jnp.inf), (parts, jnp.arange(len(parts)) * block))[0]
    return (jax.reshard(best, REPLICATED) if mesh.shape else best)[:n]


def figure(result: dict, path: Path):
    """Quantiles of the nearest cosines, drawn as a line for each comparison."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5, 3.5), layout="constrained")
    ax = picture.subplots()
    for name in ("nearest_other", "nearest_in_other"):
        if name in result:
            ax.plot([result[name][f"q{q:.2f}"] for q in QUANTILES], QUANTILES, marker="o", label=name.replace("_", " "))
    ax.set(xlabel="largest cosine", ylabel="share of living latents below", ylim=(0, 1))
    ax.legend(frameon=False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "alive_fraction": "Share of latents that fire on this text. More is good; rare ones need more text to be seen.",
    "nearest_other": "Cosine of each living latent with its nearest neighbour. A second hump near 1 would be copies.",
    "nearest_in_other": "The same with the latents of a second autoencoder: how far both found the same.",
}

EVALUATION = Evaluation(
    run,
    """A latent is alive if its value is not 0 on at least one token of those that training read (position 0 included,
    except with --skip-first), with weights at rest; frequency is the share of such tokens. Cosines are signed, of
    decoder rows of living latents: nearest_other with another living latent of the same autoencoder, nearest_in_other
    with any latent of the second one.""",
    Config,
    check=check,
    coders=("autoencoder", "transcoder", "crosscoder"),
    figure=figure,
    meanings=MEANINGS,
)
