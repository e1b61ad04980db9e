"""The best learning rate for n latents.

Claim (Gao et al. 2024, sec. 3.1.2 and fig. 3): the largest rate at which training converges falls as 1 / sqrt(n), and
the best rate for a loss at convergence is about a quarter of the best one for a fixed compute.

    python -m experiments.scaling_lr

Found here (embedded model, a million tokens, n 256 to 8192, k 16): at a fixed number of tokens the best rate falls as
n^-0.25 (-0.32 to -0.18), slower than at convergence, and is 6 times the paper's at n 256, 14 times at n 8192.

Cost: none after default_rate, whose runs of a million tokens on the embedded model it reads; about 20 minutes on 2
cores without them. After a kill, the same command resumes. Sizes whose best rate is the first or the last one that was
tried are left out. Writes OUT/scaling_lr.json, .csv and .png; its `a` and `b` are what `--lr a b` of the other
experiments takes.
"""

from pathlib import Path

import numpy as np
import tyro

from experiments import default_rate
from experiments import scaling_grid as grid
from experiments.default_rate import CENTRE, SEARCH, M, Settings, best_rates
from experiments.grid import figure, log_scale
from experiments.verdicts import Claim
from jaxsae.config import Config, with_fields
from jaxsae.scaling.fits import Fit
from jaxsae.sweep import product
from jaxsae.training.learning_rate import paper

# The points that differ in n only.
POINTS = [
    point
    for point in SEARCH
    if (point.model, point.tokens, point.batch_size, point.k) == ("embedded", M, CENTRE["batch_size"], 16)
]
# Of 2e-4 / sqrt(n / 2^14).
MULTIPLES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def runs_of(settings: Settings, preset: str = "embedded") -> dict[str, Config]:
    if preset == "embedded":
        return default_rate.searched(settings, POINTS)
    start = next(iter(grid.grid(grid.Settings(), preset).values()))
    sizes = product({"": start}, {"sae.n": [2**power for power in range(11, 18, 2)], "sae.k": [16]})
    return {
        f"rate={multiple:g}{name}": with_fields(config, lr=multiple * paper(config.sae.n))
        for multiple in MULTIPLES
        for name, config in sizes.items()
    }


def configs(preset: str = "embedded") -> dict[str, Config]:
    return runs_of(Settings(), preset)


def draw(rows: list[dict], best: list[dict], fit: Fit | str, path: Path):
    picture, axes = figure(10, 4.2, 1, 2)
    left, right = axes[0]
    for number, point in enumerate(sorted(best, key=lambda point: point["n"])):
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
    right.plot(n, [paper(v) for v in n], ":", color="0.5", label="2e-4 / sqrt(n / 2^14)")
    if not isinstance(fit, str):
        low, high = fit.intervals["b"]
        label = f"n^{fit.params['b']:.2f} ({low:.2f} to {high:.2f})"
        right.plot(n, fit.predict({"n": n}), color="0.15", label=label)
    right.set_xlabel("n")
    right.set_ylabel("learning rate")
    right.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=110)


def claims(law: Fit | str) -> list[Claim]:
    at, bounds = "Gao et al. 2024, sec. 3.1.2", {"below": 0, "size": -0.5}
    claim = "The best learning rate falls as 1 / sqrt(n)"
    return grid.claims_of((claim, at, "-0.5", "exponent at a fixed budget", grid.interval_of(law, "b"), bounds))


def main():
    settings = tyro.cli(Settings, description=__doc__)
    default_rate.write_activations(settings)
    rows = default_rate.trained(settings, runs_of(settings))
    best = best_rates(rows)
    law = grid.try_fit("power", [point for point in best if point["lr"]], y="lr")
    facts = {"best rates": best, "best rate": grid.entry(law)}
    grid.finish("scaling_lr", settings, rows, facts, lambda path: draw(rows, best, law, path), claims(law))


if __name__ == "__main__":
    main()
