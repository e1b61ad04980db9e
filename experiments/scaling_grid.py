"""What the scaling experiments share: one grid of sizes and sparsities, tables of runs, and fits.

`scaling_n`, `scaling_nk`, `scaling_compute` and `scaling_tokens` read the same runs: what one has trained, the others
find. The grid of 6 sizes by 4 sparsities costs about 40 minutes on 2 cores.

A sweep trains the same runs on other machines:

    jaxsae sweep experiments/scaling_nk.py --out runs/scaling
    jaxsae sweep experiments/scaling_nk.py --preset gpt2-small --launcher print
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.grid import RESULTS, figure, keep, plain, train_all
from experiments.verdicts import Claim, as_rows, said
from jaxsae.config import Config, with_fields
from jaxsae.errors import BadInput
from jaxsae.presets import preset as published
from jaxsae.scaling import fits
from jaxsae.scaling.fits import figure as fit_figure
from jaxsae.sweep import product

PRESETS = ("embedded", "gpt2-small")
# Share of dead latents above which a run is named in the results: it is no evidence for what its size can do.
MOST_DEAD = 0.05
# Steps between checkpoints: runs that are trained together for an hour should not lose it by a kill.
CHECKPOINT_EVERY = 250
# What a table of runs has of each: what may vary, and what was measured.
COLUMNS = ("n", "k", "lr", "batch_size", "seed", "objective", "hook", "lm")
METRICS = ("tokens", "nmse", "raw_nmse", "l0", "dead_fraction", "delta_ce", "kl", "flops", "flops_dense")


@dataclass(frozen=True)
class Settings:
    runs: Path = Path("runs/scaling")
    """Folder for the runs; those of one grid are shared by several experiments."""
    out: Path = RESULTS
    """Folder for the results."""
    sizes: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    ks: tuple[int, ...] = (4, 8, 16, 32)
    tokens: int = 2_000_000
    """Of each run: the text is read once, not whole."""
    lr: tuple[float, float] | None = None
    """a and b of the learning rate a n^b, as scaling_lr finds it; default: the library's own rule."""
    eval_tokens: int = 65_536
    share: str = "pass"
    """Which runs are trained together, as `jaxsae sweep --share`: pass, all that read the same batches."""
    workers: int = 1
    """Runs, or groups of runs, at once, each on its share of the cores."""


def base(settings: Settings) -> Config:
    """A TopK autoencoder of the embedded model, trained at a constant rate."""
    fields = {"tokens": settings.tokens, "schedule": "constant", "eval_tokens": settings.eval_tokens}
    return with_fields(Config(), checkpoint_every=CHECKPOINT_EVERY, **fields)


def waiting(config: Config, part: int = 5) -> Config:
    """The same run, in which AuxK revives latents that were idle for 1 / part of it; a fifth was the default once, and
    what is kept of the grid was trained so.
    """
    return with_fields(config, auxk_after=config.training.batch.tokens // part)


def with_rates(configs: Mapping[str, Config], lr: tuple[float, float] | None) -> dict[str, Config]:
    """The same runs with the learning rate a n^b; those of the library's rule if there is none."""
    if lr is None:
        return dict(configs)
    return {name: with_fields(c, lr=lr[0] * c.sae.n ** lr[1]) for name, c in configs.items()}


def grid(settings: Settings, preset: str = "embedded") -> dict[str, Config]:
    """Runs of all sizes at all sparsities. Raises BadInput for an unknown preset."""
    if preset == "embedded":
        runs = product(waiting(base(settings)), {"sae.n": settings.sizes, "sae.k": settings.ks})
        return with_rates(runs, settings.lr)
    if preset != "gpt2-small":
        raise BadInput(f"--preset {preset} is unknown: allowed are {', '.join(PRESETS)}")
    # Its published learning rate is that of one size.
    small = with_fields(published("gao-gpt2-small"), lr=None)
    sizes = [2**power for power in range(11, 20, 2)]
    return with_rates(product(small, {"sae.n": sizes, "sae.k": [8, 16, 32, 64, 128, 256, 512]}), settings.lr)


def train(settings: Settings, configs: Mapping[str, Config], folder: Path | None = None) -> list[dict]:
    """Rows of trained runs, of which only those are trained that are not there."""
    summaries = train_all(dict(configs), folder or settings.runs, settings.workers, settings.share)
    return [row_of(name, config, summaries[name]) for name, config in configs.items()]


def row_of(name: str, config: Config, summary: dict) -> dict:
    """What a table says of a run: COLUMNS of its configuration, METRICS that were measured."""
    training = config.training
    facts = {
        "n": config.sae.n,
        "k": config.sae.k,
        "lr": training.learning_rate(config.sae),
        "batch_size": training.batch.batch_size,
        "seed": training.batch.seed,
        "objective": training.objective,
        "hook": config.lm.hook,
        "lm": Path(config.lm.lm).name,
    }
    return {"name": name, **facts, **{metric: summary.get(metric) for metric in METRICS}}


def fitted(law: str, rows: Sequence[dict], x: Sequence[str] = ("n",), y: str = "nmse") -> fits.Fit:
    """A law fitted to columns of rows."""
    return fits.fit(law, {name: [row[name] for row in rows] for name in x}, [row[y] for row in rows])


def try_fit(law: str, rows: Sequence[dict], x: Sequence[str] = ("n",), y: str = "nmse") -> fits.Fit | str:
    """The same, or why the rows cannot be fitted."""
    try:
        return fitted(law, rows, x, y)
    except BadInput as error:
        return str(error)


def entry(fit: fits.Fit | str) -> dict:
    """A fit, or why there is none, as it stands in results."""
    return {"not fitted": fit} if isinstance(fit, str) else fit.to_json()


def select(rows: Sequence[dict], **values) -> list[dict]:
    """The rows that have all these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def interval_of(fit: fits.Fit | str, name: str) -> dict | None:
    """A parameter of a fit as what a claim is judged by: value and 95 % interval; None if the data do not bound it.

    What stands for seeds is the number of points that were fitted.
    """
    if isinstance(fit, str) or not np.isfinite(fit.intervals[name]).all():
        return None
    low, high = map(float, fit.intervals[name])
    return {"mean": float(fit.params[name]), "low": low, "high": high, "seeds": len(fit.y)}


def difference(a: dict | None, b: dict | None) -> dict | None:
    """a - b of two intervals that do not depend on each other."""
    if a is None or b is None:
        return None
    mean = a["mean"] - b["mean"]
    side = lambda x, y: float(np.hypot(x["mean"] - x["low"], y["high"] - y["mean"]))
    return {"mean": mean, "low": mean - side(a, b), "high": mean + side(b, a), "seeds": min(a["seeds"], b["seeds"])}


def claims_of(*asked: tuple) -> list[Claim]:
    """Claims whose `ours` is known, of (claim, source, theirs, measure, ours, bounds)."""
    return [Claim(*text, ours, **bounds) for *text, ours, bounds in asked if ours is not None]


def finish(
    name: str,
    settings,
    rows: Sequence[dict],
    facts: dict,
    draw: Callable[[Path], None],
    claims: Sequence[Claim] = (),
):
    """Write NAME.json with settings, fits, claims and runs, NAME.csv for `jaxsae fit`, and NAME.png; print the fits."""
    dead = {row["name"]: round(row["dead_fraction"], 4) for row in rows if (row.get("dead_fraction") or 0) > MOST_DEAD}
    facts = {**facts, "claims": as_rows(claims)}
    document = {"settings": plain(settings), **facts, f"more than {MOST_DEAD:.0%} dead": dead, "runs": list(rows)}
    path = keep(name, document, settings.out)
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(path.with_suffix(".png"))
    print("\n".join(described(facts)))
    for claim in claims:
        print(f"{claim.claim}: {claim.measure} {said(claim.ours)}: {claim.verdict}")
    if dead:
        print(f"more than {MOST_DEAD:.0%} of the latents are dead in {', '.join(dead)}")
    print(f"{path}, {path.with_suffix('.csv').name} and {path.with_suffix('.png').name}")


def described(facts: Mapping, title: str = "") -> list[str]:
    """Fits among results, as lines."""
    if "not fitted" in facts:
        return [f"{title}: not fitted, {facts['not fitted']}"]
    if "params" not in facts:
        return [
            line
            for name, inner in facts.items()
            if isinstance(inner, Mapping)
            for line in described(inner, f"{title}, {name}" if title else name)
        ]
    parts = []
    for name, value in facts["params"].items():
        low, high = ("no bound" if end is None else f"{end:.3g}" for end in facts["intervals"][name])
        parts.append(
            f"{name} {f'{value:.3g} (' if facts['identifiable'][name] else 'not identified ('}{low} to {high})"
        )
    return [f"{title}: {', '.join(parts)}; {facts['rmse_log']:.1%} off"]


def draw_fits(fits_by_title: Mapping[str, fits.Fit | str], path: Path, y: str = "NMSE", x: str | None = None):
    """Several laws of one variable in one panel, and what is left of them in the other."""
    picture, axes = figure(10, 4.2, 1, 2)
    left, right = axes[0]
    for number, (title, fit) in enumerate(fits_by_title.items()):
        if isinstance(fit, str):
            continue
        name, color = next(iter(fit.x)), f"C{number % 10}"
        column = fit.x[name]
        span = np.geomspace(column.min() / 1.2, column.max() * 1.2, 200)
        b, (low, high) = fit.params["b"], fit.intervals["b"]
        left.plot(span, fit.predict({name: span}), color=color, linewidth=1.2)
        left.plot(column, fit.y, "o", color=color, markersize=4, label=f"{title}: {b:.2f} ({low:.2f} to {high:.2f})")
        right.plot(column, 100 * fit.residuals, "o-", color=color, markersize=4, linewidth=0.7)
        for ax in (left, right):
            fit_figure.scale(ax, x or name)
    left.set(yscale="log", ylabel=y)
    left.yaxis.set_major_formatter("{x:.3g}")
    left.yaxis.set_minor_formatter("{x:.2g}")
    left.tick_params(axis="y", which="minor", labelsize=7)
    if left.lines:
        left.legend(frameon=False, fontsize=8, title="exponent", title_fontsize=8)
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set_ylabel("measured above the law (%)")
    picture.savefig(path, dpi=110)
