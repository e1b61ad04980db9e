"""How many tokens an autoencoder of n latents takes to converge.

Claim (Gao et al. 2024, sec. 3.1.2, fig. 11): tokens to convergence grow as n^0.6 on GPT-2 small and n^0.65 on GPT-4.

    python -m experiments.scaling_tokens

Found here (embedded model, n 256 to 8192, 2 million tokens): exponents of 0.70 (0.50 to 0.93) at k 4, 1.1 (0.2 to 2.1)
at k 8, 0.85 (0.58 to 1.13) at k 16 and 0.39 (0.21 to 0.58) at k 32, each from few sizes that scatter by a fifth.

Cost: none after scaling_nk, whose logs it reads; about 40 minutes on 2 cores without them. After a kill, the same
command resumes. What the paper calls converged is not known. Here each training curve is fitted as
L(T) = e + a T^b, and a run has converged when the fit is within a share EPSILON of e; runs whose e the curve does not
tell, or that would converge only after more than ten times their tokens, are left out and named. At a constant rate a
larger n has a smaller rate by the rule 1 / sqrt(n), and so the exponent depends on that rule too. Writes
OUT/scaling_tokens.json, .csv and .png.
"""

from dataclasses import dataclass

import numpy as np
import tyro

from experiments import scaling_grid as grid
from experiments.verdicts import Claim
from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.scaling import fits
from jaxsae.training.logs import METRICS, read_metrics

# Points of a curve that are fitted, and the share of the tokens that is left out before the first of them.
POINTS, BEGINNING = 30, 0.05


@dataclass(frozen=True)
class Settings(grid.Settings):
    epsilon: float = 0.1
    """A run has converged when its loss is within this share of what it would end at."""


def configs(preset: str = "embedded") -> dict[str, Config]:
    return grid.grid(Settings(), preset)


def curve(log: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and losses [POINTS or fewer] of a log, averaged over stretches of equal length in log tokens."""
    tokens, loss = (np.array([row[name] for row in log], float) for name in ("tokens", "nmse"))
    edges = np.geomspace(BEGINNING * tokens[-1], tokens[-1], POINTS + 1)
    # The first stretch holds its lower edge.
    number = np.searchsorted(edges, tokens, side="left").clip(1) - 1
    kept = tokens >= edges[0]
    mean = lambda values, i: np.exp(np.log(values[kept & (number == i)]).mean())
    filled = [i for i in range(POINTS) if (kept & (number == i)).any()]
    return np.array([mean(tokens, i) for i in filled]), np.array([mean(loss, i) for i in filled])


def converged(tokens: np.ndarray, loss: np.ndarray, epsilon: float) -> float | str:
    """Tokens at which the law of a curve is within epsilon of its end, or why nobody knows."""
    try:
        law = fits.fit("power_irreducible", {"tokens": tokens}, loss, held_out=False)
    except BadInput as error:
        return f"its log is too short: {error}"
    if not law.identifiable["e"]:
        return f"the end of its curve may be anything from 0 to {law.intervals['e'][1]:.3g}"
    e, a, b = (law.params[name] for name in ("e", "a", "b"))
    at = float(np.exp(np.log(epsilon * e / a) / b)) if b < 0 else np.inf
    return at if at <= 10 * tokens[-1] else f"it would take more than ten times its tokens ({at:.3g})"


def laws(settings: Settings, rows: list[dict]) -> tuple[list[dict], dict, dict]:
    """Rows with `converged`, {k: fit}, and {name: reason} of the runs that are left out."""
    left_out, kept = {}, []
    for row in rows:
        found = converged(*curve(read_metrics(settings.runs / row["name"] / METRICS)), settings.epsilon)
        if isinstance(found, str):
            left_out[row["name"]] = found
        kept.append(row | {"converged": None if isinstance(found, str) else found})
    usable = [row for row in kept if row["converged"]]
    return kept, {k: grid.try_fit("power", grid.select(usable, k=k), y="converged") for k in settings.ks}, left_out


def claims(found: dict) -> list[Claim]:
    at, bounds = "Gao et al. 2024, sec. 3.1.2", {"above": 0, "size": 0.6}
    return grid.claims_of(
        *(
            (f"Tokens to convergence grow with n (k {k})", at, "n^0.6", "exponent", grid.interval_of(fit, "b"), bounds)
            for k, fit in found.items()
        )
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows, found, left_out = laws(settings, grid.train(settings, grid.grid(settings)))
    facts = {f"k {k}": grid.entry(fit) for k, fit in found.items()} | {"left out": left_out}
    lines = {f"k {k}": fit for k, fit in found.items()}
    draw = lambda path: grid.draw_fits(lines, path, "tokens to convergence")
    grid.finish("scaling_tokens", settings, rows, facts, draw, claims(found))


if __name__ == "__main__":
    main()
