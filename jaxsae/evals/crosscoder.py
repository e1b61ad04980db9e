"""crosscoder: which latents of a crosscoder are shared by its sections, and how well each section is reconstructed
(Lindsey et al. 2024). n latents, S sections of width d, b contexts of T positions.

The relative decoder norms of a latent are the norms of the S parts of its decoder row, divided by their sum. One that
writes into a single section has a 1 there; one that writes equally much into all has 1 / S everywhere.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals import latents, reconstruction, substitution
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject, in_contexts, in_rows, put_in
from jaxsae.sae.decoder import section_norms
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.normalise import denormalise
from jaxsae.sae.types import SAE

BINS = 20


@dataclass(frozen=True)
class Config:
    exclusive: float = 0.9
    """A latent is exclusive to a section that has at least this share of its decoder norms."""
    shared: float = 0.5
    """A latent is shared if every section has at least this part of an equal share of its decoder norms."""

    def __post_init__(self):
        if not 0.5 < self.exclusive <= 1:
            raise BadInput(f"--crosscoder.exclusive is {self.exclusive}: allowed is above 0.5 to 1")
        if not 0 < self.shared <= 1:
            raise BadInput(f"--crosscoder.shared is {self.shared}: allowed is above 0 to 1")


def run(subject: Subject, config: Config) -> dict:
    """Shares of the living latents that are shared and exclusive, histograms of relative norms, and numbers of each
    section under its hook point (its number, without a language model).
    """
    S = subject.sae.spec.sections
    sections = [*subject.hook] if subject.lm is not None else [f"section_{m}" for m in range(S)]
    center, sums, losses = None, [], {name: [] for name in sections}
    for batch in subject.batches(title="crosscoder"):
        x = subject.activations(batch)
        center = _center(subject.sae, x, batch.kept) if center is None else center
        of_batch, substitutes = _sums(subject.sae, x, batch.kept, center, subject.selection)
        sums.append(jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(of_batch)))
        for name, part, original in zip(sections, substitutes, jnp.split(x, S, -1)) if subject.lm is not None else ():
            pair = {"original": original, "substituted": part}
            losses[name].append(substitution.summed(replace(subject, hook=name), batch, pair))
    total = jax.tree.map(lambda *parts: sum(parts), *sums)
    relative = np.asarray(jax.jit(_relative, out_shardings=None)(subject.sae), np.float64)[total["fired"] > 0]
    out = shares(relative, config.exclusive, config.shared)
    deviation = total["deviation"].reshape(S, -1)
    for m, name in enumerate(sections):
        spread = reconstruction.spread_of(total["square"][m], deviation[m], max(subject.rows, 1))
        own = {"nmse": reconstruction.ratio(total["error"][m], spread)}
        if losses[name]:
            sums_of = {key: np.concatenate([part[key] for part in losses[name]]) for key in losses[name][0]}
            own["delta_ce"] = substitution.rises(sums_of)["substituted"]
        own["exclusive"] = float((relative[:, m] >= config.exclusive).mean()) if len(relative) else None
        own["relative_norm_mean"] = float(relative[:, m].mean()) if len(relative) else None
        own["histogram"] = np.histogram(relative[:, m], BINS, (0, 1))[0].tolist()
        out[name] = own
    return out


def shares(relative, exclusive: float, shared: float) -> dict:
    """Of relative norms [A, S] of living latents: shares that are exclusive and shared, and how many sections a latent
    has, in effect (1 / the sum of squares), in the mean. None without any.
    """
    living, S = relative.shape
    if not living:
        return {"living": 0, "exclusive": None, "shared": None, "effective_sections": None}
    return {
        "living": living,
        "exclusive": float((relative.max(1) >= exclusive).mean()),
        "shared": float((relative.min(1) >= shared / S).mean()),
        "effective_sections": float((1 / (relative**2).sum(1)).mean()),
    }


def _relative(sae: SAE):
    """Relative decoder norms [n, S], on every device; 0 for a row of zeros."""
    norms = section_norms(sae.as_used().W_dec, sae.spec.sections)
    total = norms.sum(1, keepdims=True)
    return jax.reshard(norms / jnp.where(total > 0, total, 1), REPLICATED)


@jax.jit
def _center(sae: SAE, x, kept):
    """The mean [S d] of normalised x [b, T, S d] over the tokens in `kept` [b, T]: a point to measure spreads from."""
    normal = jnp.where(kept[..., None], latents.normalised(sae, x)[0], 0)
    return jax.reshard(normal.sum((0, 1)) / jnp.maximum(kept.sum(), 1), REPLICATED)


@partial(jax.jit, static_argnames="selection")
def _sums(sae: SAE, x, kept, center, selection):
    """(sums over the tokens in `kept` [b, T] of x [b, T, S d], in normalised units, and the reconstructions [b, T, d]
    of all sections in the units of the language model).
    """
    S = sae.spec.sections
    normal, mean, scale = latents.normalised(sae, x)
    xhat, _, fired, _ = latents.reconstruct_and_count(sae, in_rows(normal), in_rows(kept), selection)
    xhat = in_contexts(xhat, len(x))
    each = lambda a: jnp.where(kept[..., None, None], a.reshape(*kept.shape, S, -1), 0)
    sums = {
        "error": (each(xhat - normal) ** 2).sum((0, 1, 3)),
        "square": (each(normal - center) ** 2).sum((0, 1, 3)),
        "deviation": each(normal - center).sum((0, 1)).reshape(-1),
        "fired": fired,
    }
    substituted = put_in(denormalise(xhat, mean, scale), x, kept)
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), sums), jnp.split(substituted, S, -1)


def figure(result: dict, path: Path):
    """Histograms of relative decoder norms, a line for each section."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5, 3.5), layout="constrained")
    ax = picture.subplots()
    middles = (np.arange(BINS) + 0.5) / BINS
    sections = {name: values for name, values in result.items() if isinstance(values, dict)}
    for (name, values), marker in zip(sections.items(), "os^Dv<>p*hX" * len(sections)):
        ax.plot(middles, values["histogram"], marker=marker, markersize=4, label=name)
    ax.set(xlabel="relative decoder norm", ylabel="living latents", ylim=0)
    ax.grid(color="0.9")
    ax.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=110)


def check(subject: Subject, config: Config):
    """Raises BadInput for a language model without a hook point for each section."""
    if subject.lm is not None and len(subject.hook) != subject.sae.spec.sections:
        raise BadInput(f"the crosscoder has {subject.sae.spec.sections} sections, and --hook {len(subject.hook)} names")


MEANINGS = {
    "shared": """Share of living latents that write into every section: features that are there at all these places.""",
    "exclusive": """Share of living latents that write into one section almost alone. An L1 penalty makes latents look
    exclusive that are not (it shrinks small norms to zero): compare families before reading it.""",
    "effective_sections": "Into how many sections a latent writes, in the mean: from 1 to all.",
    "nmse": "Share of the variance of the section that the reconstruction misses.",
    "delta_ce": "Rise of the cross-entropy if the reconstruction takes the activation's place in this section alone.",
}

EVALUATION = Evaluation(
    run,
    """Relative decoder norms: norms of the parts of a decoder row, divided by their sum; each section is normalised by
    itself, so that the parts of all sections are in units of the length of their activations. Of latents that are
    active on at least one token of the evaluation: exclusive, one part has at least --crosscoder.exclusive of the sum;
    shared, every part has at least --crosscoder.shared / S of it, S the number of sections. The numbers of a section
    are of it alone: NMSE in normalised units, delta_ce with the reconstruction put in at its hook point and nowhere
    else.""",
    Config,
    coders=("crosscoder",),
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
