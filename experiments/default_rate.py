"""The learning rate for an autoencoder of n latents, a number of tokens and a batch size: what the default is read off.

Claim (Gao et al. 2024, sec. 3.1.2 and fig. 3): 2e-4 / sqrt(n / 2^14) is the rate for training to convergence, and for
a fixed number of tokens the best one is several times as large. How it goes with the tokens, nobody has published.

    python -m experiments.default_rate --other-lm FOLDER --other-text FILES

Found here: the best rate goes as n^-0.26 (-0.35 to -0.17) k^0.34 (0.19 to 0.50) T^-0.42 (-0.52 to -0.32) B^0.51 (0.38
to 0.64), to within a factor of 1.17. The default is the best of seven rates at three of five points that were held out,
and 0.5 and 1.3 % above it at the others. A rate that falls to 0 ends 4 to 8 % higher. AuxK after an eightieth of the
run ends 0 to 7 % lower than after a fifth, with fewer dead latents.

FOLDER is a second language model, in Hugging Face format, and FILES a text of it of ten million tokens or more.

SEARCH has points (n, tokens, batch size, k) with a few rates each, around the best one. All train at a constant rate
with the default average of the weights (EMA), on stored activations that are read once where they suffice. The best
rate of a point is the lowest point of a parabola through its three best neighbouring rates, in logarithms. A power law
in n, k, the tokens T and the batch size B is fitted to those that lie inside. T and B have about opposite exponents, so
what counts is the number of steps, and so have k and n: jaxsae/training/learning_rate.py has
lr = 0.4 (k / n)^(1/4) / sqrt(steps). HELD_OUT has points that were not fitted: seven rates each, among them the
default. The one with two million tokens was looked at while the law's numbers were rounded.

SCHEDULES compares, at one point, what else the rate could do: fall to 0, linearly or as a cosine; AVERAGES longer and
shorter averages of the weights. WAITS compares, at the held-out points and the default rate, after how many idle tokens
AuxK revives a latent. The runs that were not held out wait for a fifth of the run, which was the default then.

Cost: about 90 minutes on 2 cores, and 15 for the activations. After a kill, the same command resumes. Writes
OUT/default_rate.json, .csv and .png.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from scipy import stats

from experiments import scaling_grid as grid
from experiments.grid import RESULTS, figure, log_scale, train_all
from jaxsae.config import Config, with_fields
from jaxsae.run.harvest import harvest
from jaxsae.run.harvest_config import HarvestConfig
from jaxsae.sweep import product

M = 1_000_000
# Where the laws are centred.
CENTRE = {"n": 2048, "k": 16, "tokens": M, "batch_size": 2048, "steps": 1}


@dataclass(frozen=True)
class Point:
    """A setting of training, whose best rate is asked for."""

    model: str
    n: int
    tokens: int
    batch_size: int = 2048
    k: int = 16

    @property
    def name(self) -> str:
        return f"{self.model}-n={self.n}-tokens={self.tokens}-batch={self.batch_size}-k={self.k}"


@dataclass(frozen=True)
class Settings:
    other_lm: str | None = None
    """Folder of a second language model in Hugging Face format; default: none, only the embedded one is used."""
    other_text: tuple[str, ...] = ()
    """Its text, as for `jaxsae harvest --text`."""
    runs: Path = Path("runs/default_rate")
    """Folder for activations and runs."""
    out: Path = RESULTS
    """Folder for the results."""
    workers: int = 2
    """Groups of runs at once, each on its share of the cores."""

    @property
    def models(self) -> tuple[str, ...]:
        return ("embedded", "other") if self.other_lm else ("embedded",)

    def folder(self, model: str) -> Path:
        """The folder of a model's activations."""
        return self.runs / "activations" / model


FIRST = (0.75e-3, 1.5e-3, 3e-3, 6e-3, 9e-3, 12e-3)
SEARCH: dict[Point, Sequence[float]] = {
    **{Point(model, 2048, M): FIRST for model in ("embedded", "other")},
    **{
        Point(model, *point): rates
        for model in ("embedded", "other")
        for point, rates in {
            (512, M): (3e-3, 6e-3, 12e-3, 24e-3),
            (8192, M): (1.5e-3, 3e-3, 6e-3),
            (2048, 300_000): (6e-3, 12e-3, 24e-3),
            (8192, 300_000): (3e-3, 6e-3, 12e-3),
            (2048, 3 * M): (2e-3, 4e-3, 8e-3),
            (2048, M, 512): (1e-3, 2e-3, 4e-3, 8e-3),
            (2048, M, 8192): (6e-3, 12e-3, 24e-3),
            (2048, M, 2048, 4): (2e-3, 4e-3, 8e-3),
        }.items()
    },
    # Sizes between those of the others, for scaling_lr.
    Point("embedded", 256, M): (4e-3, 8e-3, 16e-3),
    Point("embedded", 1024, M): (4e-3, 8e-3, 16e-3),
    Point("embedded", 4096, M): (2e-3, 4e-3, 8e-3),
    Point("embedded", 2048, M, k=64): (3e-3, 6e-3, 12e-3, 24e-3),
    Point("embedded", 16384, 300_000): (2e-3, 4e-3, 8e-3),
    Point("other", 2048, M, k=64): (6e-3, 12e-3, 24e-3),
    Point("other", 2048, 10 * M): (1.5e-3, 3e-3, 6e-3),
}
HELD_OUT = (
    Point("embedded", 1024, 600_000, k=32),
    Point("embedded", 4096, M, 4096),
    Point("embedded", 8192, 600_000, 1024),
    Point("other", 2048, 2 * M),
    Point("other", 768, 4 * M, 4096, k=8),
)
# Of the default, at the points that are held out.
MULTIPLES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
SCHEDULES = ("linear", "cosine")
# EMA decays besides the default, which is 0.98 there.
AVERAGES = (0.96, 0.99)
# AuxK revives a latent that was idle for this part of the run, besides the default, an eightieth.
WAITS = (5, 320)


def write_activations(settings: Settings):
    """Harvest each model's activations, unless they are there."""
    more = {
        "embedded": {"tokens": 3_600_000},
        "other": {"tokens": 10_100_000, "lm": settings.other_lm, "text": settings.other_text},
    }
    for model in settings.models:
        base = HarvestConfig(str(settings.folder(model)), held_out_tokens=65_536, dtype="bfloat16")
        harvest(with_fields(base, **more[model]))


def start(settings: Settings, point: Point) -> Config:
    """The configuration of a point, at the default rate."""
    fields = {"sae.n": point.n, "sae.k": point.k, "tokens": point.tokens, "batch_size": point.batch_size}
    where = {"activations": str(settings.folder(point.model)), "eval_tokens": 32_768}
    return with_fields(Config(), checkpoint_every=10**7, **where, **fields)


def searched(settings: Settings, points: Iterable[Point] = SEARCH) -> dict[str, Config]:
    """The runs that the law is fitted to: all rates of some points."""
    runs = {}
    for point in points:
        if point.model in settings.models:
            runs |= product({point.name: grid.waiting(start(settings, point))}, {"lr": SEARCH[point]})
    return runs


def held_out(settings: Settings) -> dict[str, Config]:
    """The runs that the default is tried on."""
    runs = {}
    for point in HELD_OUT:
        if point.model not in settings.models:
            continue
        config = start(settings, point)
        lr = config.training.learning_rate(config.sae)
        # The default itself has no rate, as a user's run has none.
        runs |= {
            f"held-out-{point.name}-times={m:g}": config if m == 1 else with_fields(config, lr=float(f"{m * lr:.3g}"))
            for m in MULTIPLES
        }
    return runs


def waits(settings: Settings) -> dict[str, Config]:
    """Runs at the default rate in which AuxK waits for more or less time."""
    points = [point for point in HELD_OUT if point.model in settings.models]
    return {
        f"held-out-{point.name}-auxk-after-1-of-{part}": grid.waiting(start(settings, point), part)
        for point in points
        for part in WAITS
    }


def schedules(settings: Settings) -> dict[str, Config]:
    """Runs at one point whose rate falls to 0, or that average over more or fewer steps, beside those of the search."""
    runs = {}
    for model in settings.models:
        point = Point(model, 2048, M)
        for schedule in SCHEDULES:
            config = with_fields(grid.waiting(start(settings, point)), schedule=schedule, lr_end=0.0)
            runs |= product({f"{point.name}-{schedule}": config}, {"lr": (1.5e-3, 3e-3, 6e-3, 12e-3)})
        at_best = with_fields(grid.waiting(start(settings, point)), lr=6e-3)
        runs |= product({f"{point.name}-lr=0.006": at_best}, {"ema": AVERAGES})
    return runs


def trained(settings: Settings, runs: dict[str, Config]) -> list[dict]:
    """A row for each run; those that can read one stream of activations are trained together."""
    summaries = train_all(runs, settings.runs / "runs", settings.workers, share="pass")
    more = lambda c: {
        "schedule": c.training.optimizer.schedule,
        "model": Path(c.data.activations).name,
        # What was asked for; the last batch goes beyond it.
        "tokens": c.training.batch.tokens,
        "auxk_after": c.training.auxk_window(),
    }
    # raw_nmse is that of the weights at the end, without the average.
    raw = lambda name: {"raw_nmse": summaries[name]["raw_nmse"]}
    return [grid.row_of(name, c, summaries[name]) | more(c) | raw(name) for name, c in runs.items()]


def of_point(rows: Sequence[dict], point: Point) -> list[dict]:
    """The rows of a point's runs, in the order of their rates."""
    return sorted(grid.select(rows, **asdict(point)), key=lambda row: row["lr"])


def default_of(row: dict) -> float:
    """The default rate of what a point or a row of a run says."""
    fields = {"sae.n": row["n"], "sae.k": row["k"], "tokens": row["tokens"], "batch_size": row["batch_size"]}
    config = with_fields(Config(), **fields)
    return config.training.learning_rate(config.sae)


def best_rate(rates: np.ndarray, losses: np.ndarray, at: float | None = None) -> tuple[float, float] | None:
    """The rate of the least loss, between the rates that were tried, and how much larger the loss is at the rate `at`
    (1.01: by 1 %); None if the best one that was tried is the first or the last.
    """
    order = np.argsort(rates)
    x, y = np.log(rates[order]), np.log(losses[order])
    i = int(np.argmin(y))
    if i in (0, len(x) - 1):
        return None
    parabola = np.polynomial.Polynomial.fit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
    best = float(parabola.deriv().roots()[0])
    return float(np.exp(best)), float(np.exp(parabola(np.log(at)) - parabola(best))) if at else 1.0


def best_rates(rows: Sequence[dict]) -> list[dict]:
    """Of each point of the search: its fields, its best rate `lr` (None if that is the first or the last one that was
    tried), the `default`, how much larger the loss is there, and the least `nmse` that was measured. Runs that diverged
    count as bad.
    """
    out = []
    for point in SEARCH:
        own = [row for row in of_point(rows, point) if row["nmse"] is not None and np.isfinite(row["nmse"])]
        if own:
            default = default_of(asdict(point))
            found = best_rate(*(np.array([row[name] for row in own]) for name in ("lr", "nmse")), at=default)
            lr, above = (None, None) if found is None else found
            nmse = min(row["nmse"] for row in own)
            out.append(asdict(point) | {"lr": lr, "default": default, "loss at the default": above, "nmse": nmse})
    return out


def law_of(best: Sequence[dict], names: Sequence[str]) -> dict[str, dict]:
    """{c and the exponents of `names`: value and 95 % interval}, by least squares of logarithms and Student's t."""
    inside = [row | {"steps": row["tokens"] / row["batch_size"]} for row in best if row["lr"]]
    columns = [np.log([row[name] / CENTRE[name] for row in inside]) for name in names]
    X, y = np.stack([np.ones(len(inside)), *columns], 1), np.log([row["lr"] for row in inside])
    coef, *_ = np.linalg.lstsq(X, y, rcond=None)
    left = y - X @ coef
    freedom = len(y) - X.shape[1]
    error = np.sqrt(np.diag(np.linalg.inv(X.T @ X)) * (left**2).sum() / freedom)
    half = stats.t.ppf(0.975, freedom) * error
    value = lambda i, side: float(np.exp(coef[i] + side * half[i]) if i == 0 else coef[i] + side * half[i])
    interval = lambda i: {"value": value(i, 0), "low": value(i, -1), "high": value(i, 1)}
    facts = {name: interval(i) for i, name in enumerate(("c", *names))}
    return facts | {"off by a factor of, rms": float(np.exp(np.sqrt((left**2).mean())))}


def tried(rows: Sequence[dict]) -> list[dict]:
    """What the default loses to the best of the seven rates, at each point that the law has not seen."""
    out = []
    for point in HELD_OUT:
        if not (own := of_point(rows, point)):
            continue
        default = next(filter(has_default_rate, own))
        best = min(own, key=lambda row: row["nmse"])
        facts = {"point": point.name, "default": default["nmse"], "rate": default["lr"]}
        facts |= {"best": best["nmse"], "best rate": best["lr"], "dead at the default": default["dead_fraction"]}
        out.append(facts | {"above the best": default["nmse"] / best["nmse"] - 1})
    return out


def has_default_rate(row: dict) -> bool:
    """Whether a run that was held out was given no rate."""
    return row["name"].endswith("times=1")


def waited(rows: Sequence[dict]) -> list[dict]:
    """NMSE and dead share at each point that was held out, by the part of the run that AuxK waits for."""
    facts = lambda point, row: {
        "point": point.name,
        "part": round(row["tokens"] / row["auxk_after"]),
        "nmse": row["nmse"],
        "dead": row["dead_fraction"],
    }
    found = [facts(point, row) for point in HELD_OUT for row in of_point(rows, point)]
    return sorted(found, key=lambda row: (row["point"], row["part"]))


def draw(rows: Sequence[dict], best: Sequence[dict], rows_held_out: Sequence[dict], path: Path):
    picture, axes = figure(10, 4.2, 1, 2)
    left, right = axes[0]
    inside = [row for row in best if row["lr"]]
    for marker, model in zip("os", ("embedded", "other")):
        own = grid.select(inside, model=model)
        left.plot([r["default"] for r in own], [r["lr"] for r in own], marker, markersize=5, label=f"{model} model")
    defaults = [row["default"] for row in inside]
    ends = [min(defaults) / 1.5, max(defaults) * 1.5]
    left.plot(ends, ends, color="0.5", linewidth=0.8)
    left.set_xlabel("default learning rate")
    left.set_ylabel("best learning rate")
    left.legend(frameon=False)
    for number, point in enumerate(HELD_OUT):
        if not (own := of_point(rows_held_out, point)):
            continue
        least = min(row["nmse"] for row in own)
        label = f"n {point.n}, {point.tokens / M:g}M tokens, batch {point.batch_size}, k {point.k}"
        x = [row["lr"] / default_of(row) for row in own]
        right.plot(
            x, [100 * (row["nmse"] / least - 1) for row in own], "o-", color=f"C{number}", markersize=4, label=label
        )
    right.axhline(3, color="0.6", linestyle=":")
    right.axvline(1, color="0.6", linestyle=":")
    right.set_ylim(-1, 40)
    right.set_xlabel("learning rate, of the default")
    right.set_ylabel("NMSE above the best of seven rates (%)")
    right.legend(frameon=False, fontsize=7)
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        log_scale(axis)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    write_activations(settings)
    runs = [trained(settings, of(settings)) for of in (searched, held_out, schedules, waits)]
    best, defaults = best_rates(runs[0]), tried(runs[1])
    laws = {"by tokens and batch": ("n", "k", "tokens", "batch_size"), "by steps": ("n", "k", "steps")}
    facts = {f"law {title}": law_of(best, names) for title, names in laws.items()}
    for title, law in facts.items():
        print(title, law)
    facts |= {"best rates": best, "held out": defaults, "waits": waited([*filter(has_default_rate, runs[1]), *runs[3]])}
    for row in defaults:
        print(f"{row['point']}: the default is {row['above the best']:.1%} above the best of {len(MULTIPLES)} rates")
    for row in facts["waits"]:
        print(f"{row['point']}: AuxK after 1/{row['part']}: NMSE {row['nmse']:.4f}, {row['dead']:.1%} dead")
    grid.finish(
        "default_rate",
        settings,
        [row for rows in runs for row in rows],
        facts,
        lambda path: draw(runs[0], best, runs[1], path),
    )


if __name__ == "__main__":
    main()
