"""The loss against the batch size, at equal tokens.

Claim (Gao et al. 2024, app. A.4, fig. 12): the batch size affects the loss for a fixed compute substantially, and that
at convergence hardly, if hyperparameters are set right; the paper's is 131,072 tokens, earlier work's 2048 to 4096.

    python -m experiments.scaling_batch

Cost: about 15 minutes on 2 cores: 6 batch sizes at 3 rates each, on a million tokens. After a kill, the same command
resumes. Rates are multiples of one that goes as the square root of the batch size; of each batch size the best rate
counts, and the results say if that was the first or the last. Writes OUT/scaling_batch.json, .csv and .png.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import scaling_grid as grid
from experiments.grid import figure, log_scale
from experiments.scaling_lr import rule
from jaxsae.config import Config, with_fields
from jaxsae.sweep import product


@dataclass(frozen=True)
class Settings(grid.Settings):
    runs: Path = Path("runs/scaling_batch")
    batches: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)
    n: int = 2048
    k: int = 16
    tokens: int = 1_000_000
    rates: tuple[float, ...] = (2.0, 5.0, 12.0)
    """Multiples of 2e-4 / sqrt(n / 2^14) at a batch of 2048 tokens."""


def runs_of(settings: Settings) -> dict[str, Config]:
    start = with_fields(grid.base(settings), **{"sae.n": settings.n, "sae.k": settings.k})
    runs = {}
    for rate in settings.rates:
        of_rate = product({f"rate={rate:g}": start}, {"batch_size": settings.batches})
        scaled = lambda config, rate=rate: rate * rule(settings.n) * (config.training.batch.batch_size / 2048) ** 0.5
        runs |= {name: with_fields(config, lr=scaled(config)) for name, config in of_rate.items()}
    return runs


def configs() -> dict[str, Config]:
    return runs_of(Settings())


def best_of(rows: list[dict]) -> list[dict]:
    """The best run of each batch size, and whether its rate lies between others."""
    out = []
    for batch in sorted({row["batch_size"] for row in rows}):
        own = sorted(grid.select(rows, batch_size=batch), key=lambda row: row["lr"])
        best = min(own, key=lambda row: row["nmse"])
        out.append(best | {"rate is inside": 0 < own.index(best) < len(own) - 1})
    return out


def draw(rows: list[dict], best: list[dict], path: Path):
    picture, axes = figure(5.5, 4)
    ax = axes[0, 0]
    for number, rate in enumerate(sorted({row["rate"] for row in rows})):
        own = sorted(grid.select(rows, rate=rate), key=lambda row: row["batch_size"])
        ax.plot(
            [r["batch_size"] for r in own], [r["nmse"] for r in own], "o-", color=f"C{number}", label=f"rate {rate}"
        )
    ax.plot([r["batch_size"] for r in best], [r["nmse"] for r in best], color="0.15", linewidth=2.5, alpha=0.4)
    log_scale(ax.xaxis)
    log_scale(ax.yaxis)
    ax.set_xticks(sorted({row["batch_size"] for row in rows}))
    ax.set_xlabel("batch size (tokens)")
    ax.set_ylabel("NMSE")
    ax.legend(frameon=False)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = [row | {"rate": row["name"].split("-")[0]} for row in grid.train(settings, runs_of(settings))]
    best = best_of(rows)
    law = grid.try_fit("power", best, ("batch_size",))
    facts = {"best of each batch size": best, "loss against batch size": grid.entry(law)}
    grid.finish("scaling_batch", settings, rows, facts, lambda path: draw(rows, best, path))


if __name__ == "__main__":
    main()
