"""The best learning rate for n latents.

Claim (Gao et al. 2024, sec. 3.1.2 and fig. 3): the largest rate at which training converges falls as 1 / sqrt(n), and
the best rate for a loss at convergence is about a quarter of the best one for a fixed compute.

    python -m experiments.scaling_lr

Cost: about 18 minutes on 2 cores: 5 sizes at 7 rates each, constant over a million tokens. After a kill, the same
command resumes. The best rate of a size is the lowest point of a parabola through its three best neighbouring rates, in
logarithms; sizes whose best rate is the first or the last one are left out. The rates are multiples of 1 / sqrt(n), so
that they do not suggest another exponent by where they end. Writes OUT/scaling_lr.json, .csv and .png; its `a` and `b`
are what `--lr a b` of the other experiments takes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments import scaling_grid as grid
from experiments.grid import figure, log_scale
from jaxsae.config import Config, with_fields
from jaxsae.scaling.fits import Fit
from jaxsae.sweep import product


@dataclass(frozen=True)
class Settings(grid.Settings):
    runs: Path = Path("runs/scaling_lr")
    sizes: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    k: int = 16
    tokens: int = 1_000_000
    rates: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Multiples of 2e-4 / sqrt(n / 2^14)."""


def rule(n: int) -> float:
    """What fig. 3 of the paper says, read off."""
    return 2e-4 / (n / 2**14) ** 0.5


def runs_of(settings: Settings, preset: str = "embedded") -> dict[str, Config]:
    if preset == "embedded":
        start, sizes = grid.base(settings), settings.sizes
    else:
        start, sizes = next(iter(grid.grid(settings, preset).values())), [2**power for power in range(11, 18, 2)]
    at = {f"rate={rate:g}": rate for rate in settings.rates}
    runs = {}
    for name, rate in at.items():
        of_rate = product({name: start}, {"sae.n": sizes, "sae.k": [settings.k]})
        runs |= {run: with_fields(config, lr=rate * rule(config.sae.n)) for run, config in of_rate.items()}
    return runs


def configs(preset: str = "embedded") -> dict[str, Config]:
    return runs_of(Settings(), preset)


def best_rate(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The rate of the least loss, between the rates that were tried; None if it is the first or the last of them."""
    order = np.argsort(rates)
    x, y = np.log(rates[order]), np.log(losses[order])
    i = int(np.argmin(y))
    if i in (0, len(x) - 1):
        return None
    _, c1, c2 = np.polynomial.polynomial.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
    return float(np.exp(x[i] - c1 / (2 * c2))) if c2 > 0 else float(np.exp(x[i]))


def best_of(rows: list[dict]) -> list[dict]:
    """{n, lr, nmse} of each size: the best rate, and the least loss that was measured. Diverged runs count as bad."""
    out = []
    for n in sorted({row["n"] for row in rows}):
        own = [row for row in grid.select(rows, n=n) if row["nmse"] is not None and np.isfinite(row["nmse"])]
        lr = best_rate(np.array([row["lr"] for row in own]), np.array([row["nmse"] for row in own]))
        out.append({"n": n, "lr": lr, "nmse": min(row["nmse"] for row in own)})
    return out


def draw(rows: list[dict], best: list[dict], fit: Fit | str, path: Path):
    picture, axes = figure(10, 4.2, 1, 2)
    left, right = axes[0]
    for number, point in enumerate(best):
        own = sorted(grid.select(rows, n=point["n"]), key=lambda row: row["lr"])
        left.plot([row["lr"] for row in own], [row["nmse"] for row in own], "o-", color=f"C{number}", label=point["n"])
    left.set_ylabel("NMSE")
    left.set_xlabel("learning rate")
    for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        log_scale(axis)
    left.legend(frameon=False, title="n")
    inside = [point for point in best if point["lr"]]
    right.plot([p["n"] for p in inside], [p["lr"] for p in inside], "o", color="0.15", label="best rate")
    n = np.geomspace(min(row["n"] for row in rows), max(row["n"] for row in rows), 50)
    right.plot(n, [rule(v) for v in n], ":", color="0.5", label="2e-4 / sqrt(n / 2^14)")
    if not isinstance(fit, str):
        low, high = fit.intervals["b"]
        label = f"n^{fit.params['b']:.2f} ({low:.2f} to {high:.2f})"
        right.plot(n, fit.predict({"n": n}), color="0.15", label=label)
    right.set_xlabel("n")
    right.set_ylabel("learning rate")
    right.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = grid.train(settings, runs_of(settings))
    best = best_of(rows)
    law = grid.try_fit("power", [point for point in best if point["lr"]], y="lr")
    facts = {"best rates": best, "best rate": grid.entry(law)}
    grid.finish("scaling_lr", settings, rows, facts, lambda path: draw(rows, best, law, path))


if __name__ == "__main__":
    main()
