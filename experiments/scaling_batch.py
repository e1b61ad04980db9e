"""The loss against the batch size, at equal tokens.

Claim (Gao et al. 2024, app. A.4, fig. 12): the batch size affects the loss for a fixed compute substantially, and that
at convergence hardly, if hyperparameters are set right; the paper's is 131,072 tokens, earlier work's 2048 to 4096.

    python -m experiments.scaling_batch

Found here (embedded model, a million tokens, n 2048, k 16): at equal tokens, each at its best rate, the NMSE is 0.096
with batches of 512, 0.102 with 2048, 0.118 with 8192. The best rate rises as the square root of the batch size.

Cost: none after default_rate, whose runs of a million tokens at one n it reads; about 10 minutes on 2 cores without
them. After a kill, the same command resumes. Of each batch size the best of several rates counts, and the results say
if that was the first or the last. Writes OUT/scaling_batch.json, .csv and .png.
"""

from pathlib import Path

import tyro

from experiments import default_rate
from experiments import scaling_grid as grid
from experiments.default_rate import CENTRE, SEARCH, M, Settings
from experiments.grid import figure, log_scale
from experiments.verdicts import Claim, interval
from jaxsae.config import Config

# The points that differ in the batch size only.
POINTS = [
    point for point in SEARCH if (point.model, point.tokens, point.n, point.k) == ("embedded", M, CENTRE["n"], 16)
]


def configs() -> dict[str, Config]:
    return default_rate.searched(Settings(), POINTS)


def best_of(rows: list[dict]) -> list[dict]:
    """The best run of each batch size, and whether its rate lies between others."""
    out = []
    for batch in sorted({row["batch_size"] for row in rows}):
        own = sorted(grid.select(rows, batch_size=batch), key=lambda row: row["lr"])
        best = min(own, key=lambda row: row["nmse"])
        out.append(best | {"rate is inside": 0 < own.index(best) < len(own) - 1})
    return out


def draw(rows: list[dict], best: list[dict], path: Path):
    picture, axes = figure(10, 4, 1, 2)
    left, right = axes[0]
    for number, point in enumerate(best):
        own = sorted(grid.select(rows, batch_size=point["batch_size"]), key=lambda row: row["lr"])
        x, y = ([row[name] for row in own] for name in ("lr", "nmse"))
        left.plot(x, y, "o-", color=f"C{number}", label=f"batch {point['batch_size']}")
    right.plot([r["batch_size"] for r in best], [r["nmse"] for r in best], "o-", color="0.15")
    for axis in (left.xaxis, right.xaxis):
        log_scale(axis)
    right.set_xticks([row["batch_size"] for row in best])
    left.set_xlabel("learning rate")
    left.set_ylabel("NMSE")
    right.set_xlabel("batch size (tokens)")
    right.set_ylabel("NMSE at the best rate")
    left.legend(frameon=False)
    picture.savefig(path, dpi=110)


def claims(best: list[dict]) -> list[Claim]:
    smallest, largest = best[0], best[-1]
    measure = f"NMSE with batches of {largest['batch_size']}, of that with {smallest['batch_size']}"
    ours = interval([largest["nmse"] / smallest["nmse"]])
    return grid.claims_of(
        ("At equal tokens the batch size matters", "Gao et al. 2024, app. A.4", "much", measure, ours, {"above": 1})
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    default_rate.write_activations(settings)
    rows = default_rate.trained(settings, default_rate.searched(settings, POINTS))
    best = best_of(rows)
    law = grid.try_fit("power", best, ("batch_size",))
    facts = {"best of each batch size": best, "loss against batch size": grid.entry(law)}
    grid.finish("scaling_batch", settings, rows, facts, lambda path: draw(rows, best, path), claims(best))


if __name__ == "__main__":
    main()
