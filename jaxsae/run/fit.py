"""`jaxsae fit`: from a table, or from the logs of runs, to a fitted law."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsae.config import from_json
from jaxsae.errors import BadInput
from jaxsae.run import folder as folders
from jaxsae.run.fit_config import FitConfig
from jaxsae.run.folder import CONFIG, SUMMARY
from jaxsae.scaling import fits, table
from jaxsae.scaling.fits import figure
from jaxsae.scaling.fits.frontier import Frontier, frontier
from jaxsae.scaling.table import Table
from jaxsae.training.logs import METRICS, read_metrics

# Of one training step over another, what costs a run of the same autoencoder: all in proportion to tokens.
COMPUTE = ("flops", "flops_dense", "tokens")


@dataclass(frozen=True)
class Fitted:
    """A fit, what its loss is called, and of a frontier the curves' lower envelope."""

    fit: fits.Fit
    y: str
    frontier: Frontier | None = None


def run(config: FitConfig):
    """Do what `jaxsae fit` was asked, and print what came out. Raises BadInput."""
    if config.plot:
        figure.check(Path(config.plot))
    result = fit(config.table, config.law, config.x, config.y, config.where)
    print(json.dumps(result.fit.to_json(), indent=1) if config.json else report(result))
    if config.plot:
        figure.draw(result.fit, Path(config.plot), result.y, result.frontier)


def fit(paths: Sequence[str], law: str, x: Sequence[str], y: str, where: Sequence[str]) -> Fitted:
    """The law fitted to one .csv, or, if it is the frontier, also to the training curves of runs.

    `x` are columns, empty for those of the law; `where` conditions COLUMN=VALUE on rows. Raises BadInput for tables
    that cannot be fitted, with the reason.
    """
    x = tuple(x) or fits.COLUMNS[law]
    if len(x) != len(fits.COLUMNS[law]):
        raise BadInput(
            f"--x {' '.join(x)}: {law} is a law of {len(fits.COLUMNS[law])} columns, as many have to be given"
        )
    data, missing = _read([Path(path) for path in paths], law, x[0], y).where(where).finished()
    if missing:
        print(f"jaxsae: runs that are not done are left out: {', '.join(missing)}", file=sys.stderr)
    if law != "frontier":
        data.check_alike(x)
        return Fitted(fits.fit(law, {name: data.numbers(name) for name in x}, data.numbers(y)), y)
    compute, loss = data.numbers(x[0]), data.numbers(y)
    if len(bad := np.flatnonzero(~((compute > 0) & (loss > 0)))):
        raise BadInput(
            f"{data.source} has {x[0]} {compute[bad[0]]:g} with {y} {loss[bad[0]]:g}: both have to be above 0"
        )
    best = frontier([(compute[rows], loss[rows]) for rows in data.runs()])
    return Fitted(fits.fit(law, {x[0]: best.compute}, best.loss), y, best)


def _read(paths: Sequence[Path], law: str, compute: str, y: str) -> Table:
    runs = [path.parent if path.name == METRICS else path for path in paths]
    if not any(path.is_dir() for path in runs):
        if len(paths) != 1:
            raise BadInput(f"{len(paths)} tables are given: give one .csv, or the folders of runs for --law frontier")
        return table.read(paths[0])
    if law != "frontier":
        raise BadInput(
            f"--law {law} is fitted to a table, one row a run: give a .csv, such as the results.csv of a sweep"
        )
    if compute not in COMPUTE:
        raise BadInput(f"--x {compute} is unknown for training curves: allowed are {', '.join(COMPUTE)}")
    return Table(f"{METRICS} of {len(runs)} runs", [row for run in runs for row in curve(run, compute, y)])


def curve(run: Path, compute: str, y: str) -> list[dict]:
    """Rows of a run's log with what it had cost by then, one for each log step.

    Raises BadInput if it did not end, because its summary says what a token costs.
    """
    facts, rows = folders.read(run / SUMMARY), read_metrics(run / METRICS)
    if not rows or not facts.get(compute):
        raise BadInput(f"{run} is no run that has ended: it has no {METRICS}, or no {SUMMARY} that says its {compute}")
    if y not in rows[0]:
        raise BadInput(f"{run / METRICS} has no {y}: it has {', '.join(rows[0])}")
    config = from_json(run / CONFIG)
    of_run = {"run": str(run), "n": config.sae.n, "k": config.sae.k, "seed": config.training.batch.seed}
    cost = facts[compute] / facts["tokens"]
    return [of_run | {compute: row["tokens"] * cost, y: row[y]} for row in rows]


def report(result: Fitted) -> str:
    """A fit as text: the law, its parameters with their intervals, and what it predicts of sizes left out."""
    fit, kind = result.fit, fits.LAWS[result.fit.law]
    x = next(iter(fit.x))
    lines = [
        f"{kind.formula}",
        f"L is {result.y}{f', x {x}' if len(fit.x) == 1 else ''}; {_points(fit)}",
        "",
        f"{'parameter':<12}{'value':>12}    95 % interval",
    ]
    for name, value in fit.params.items():
        known = fit.identifiable[name]
        text = f"{value:.4g}" if known else ""
        lines.append(f"{name:<12}{text:>12}    {_interval(fit.intervals[name])}{'' if known else ', not identified'}")
    for k, (value, low, high) in (fit.floors or {}).items():
        text = f"{value:.4g}" if low > 0 and np.isfinite(high) else ""
        lines.append(f"{f'floor, k {k:g}':<12}{text:>12}    {_interval((low, high))}")
    lines += ["", f"residuals {fit.rmse_log:.2%} (root mean square of log losses)"]
    if (held_out := fit.held_out) is not None:
        said = held_out.to_json()
        lines.append(f"each {held_out.column} predicted from the others: {said['rmse_log']:.2%} off")
        if held_out.without_floor is not None:
            better = "the floor predicts better" if held_out.prefers_floor else "no floor predicts better"
            lines[-1] += f", without a floor {said['rmse_log_without_floor']:.2%}: {better}"
        largest = said["largest"]
        lines.append(
            f"the largest, {largest[held_out.column]:.6g}, from all smaller ones: {largest['rmse_log']:.2%} off"
        )
    return "\n".join(lines)


def _points(fit: fits.Fit) -> str:
    spans = [f"{name} {column.min():.6g} to {column.max():.6g}" for name, column in fit.x.items()]
    return f"{len(fit.y)} points, {', '.join(spans)}"


def _interval(ends: tuple[float, float]) -> str:
    low, high = ("no bound" if not np.isfinite(end) else f"{end:.4g}" for end in ends)
    return f"{low} to {high}"
