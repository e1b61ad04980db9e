"""How many active features does an autoencoder need for the same loss of the language model?

Claim (Braun et al. 2024, sec. 3.1): trained end to end, an autoencoder explains the same share of the language model's
performance with less than half the active features per token (layer 6 of GPT-2 small: the CE increase at equal L0 is
below 45 % of a local autoencoder's), and with fewer features in all.

Found here (embedded language model, 300 thousand tokens of training): the direction of the claim holds, its size does
not. At equal CE increase e2e needs 0.69 of local's active features per token before block 3, the mean over the
increases that all runs compared reach, 0.22 to 0.38 nats (95 % interval of this mean over five seeds 0.65 to 0.73). It
is no constant: 0.79 at the lower end, 0.62 at the upper one, 0.56 and 0.59 in two seeds of runs trained to an increase
of 0.38. Before block 5 (one seed) 0.67, from 0.84 at 0.17 nats to 0.58 at 0.47. e2e + downstream needs 0.78 (0.76 to
0.79), from 0.85 at 0.10 nats to 0.72 at 0.32, and 0.68 and 0.73 in the runs at 0.38; before block 5 0.90. The CE
increase at equal L0 is 0.69 (0.66 to 0.72) of local's for e2e at L0 51 to 73, and 0.68 (0.65 to 0.70) for e2e +
downstream at 51 to 115, before block 3: not below 0.45. Fewer features in all holds for e2e + downstream (0.86, 0.79 to
0.93; 0.96 before block 5) and fails for e2e, which keeps 2.7 times as many alive at the lower end and 1.7 times at the
upper (2.0 and 1.1 before block 5). What e2e gains is the less, the more latents are active; it was worse than local
nowhere.

    python -m experiments.e2e_pareto

Cost: about an hour on 2 cores. It trains ReLU autoencoders of the embedded language model on a grid of sparsity
coefficients at two layers, five seeds at one of them (seeds after the first leave out the sparsest), and searches for
triples (local, e2e, e2e + downstream) of similar CE increase, L0, and number of living latents. The same command goes
on after a kill.

A latent is alive here if it was active in the last fifth of training. One learning rate was taken for all types, the
best (and largest) of three for local and for e2e in single runs that are not among the results; few latents live at it,
most so at the layer of all seeds.

Needs scipy (pip install -e ".[experiments]"). Writes OUT/e2e_pareto.json and OUT/e2e_pareto.png; the runs stay in RUNS,
where the other experiments find them.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from scipy import stats

from experiments.grid import LABELS, RESULTS, STYLES, facts_of, figure, keep, log_scale, plain, relu, train_all
from jaxsae.config import Config, with_fields

TYPES = ("local", "e2e", "e2e_downstream")
SPARSITY = {
    "local": (2.5, 6.0, 14.0, 32.0),
    "e2e": (0.01, 0.025, 0.06, 0.15),
    "e2e_downstream": (0.4, 0.9, 2.0, 4.5),
}


@dataclass(frozen=True)
class Settings:
    runs: Path = Path("runs/e2e")
    """Folder for the runs."""
    out: Path = RESULTS
    """Folder for the results."""
    layer: int = 3
    """Block before which autoencoders of all seeds stand."""
    other_layer: int = 5
    """Block before which autoencoders of the first seed stand."""
    seeds: int = 5
    tokens: int = 300_000
    """Of each run."""
    n: int = 1536
    """Latents."""
    lr: float = 1e-2
    """Of all types: of 2e-3, 5e-3 and 1e-2 the best for local and for e2e at layer 3, seed 0."""
    downstream_coef: float = 0.1
    """Total weight of the errors at later layers: of the size, beside the KL, that it has in the paper's runs."""
    eval_tokens: int = 16_384
    workers: int = 2
    """Runs at once, each on its share of the cores."""


def config(settings: Settings, layer: int, kind: str, sparsity: float, seed: int) -> Config:
    hook = f"blocks.{layer}.hook_resid_pre"
    made = relu(kind, hook, settings.n, settings.tokens, settings.lr, sparsity, settings.downstream_coef)
    return with_fields(made, seed=seed, eval_tokens=settings.eval_tokens)


def name(layer: int, kind: str, sparsity: float, seed: int) -> str:
    return f"layer{layer}-{kind}-{sparsity:g}-seed{seed}"


def run(settings: Settings, points: list[tuple]) -> list[dict]:
    """Rows of trained autoencoders for points (layer, type, sparsity, seed)."""
    configs = {name(*point): config(settings, *point) for point in points}
    summaries = train_all(configs, settings.runs, settings.workers)
    rows = []
    for (layer, kind, sparsity, seed), (run, summary) in zip(points, summaries.items()):
        point = {"layer": layer, "type": kind, "sparsity": sparsity, "seed": seed, "matched": False}
        rows.append(point | facts_of(configs[run], summary))
    return rows


def grid(settings: Settings) -> list[dict]:
    """All rows: both layers' sweeps, and for two seeds one more run of each type whose CE increase should be equal."""
    where = [(settings.layer, seed) for seed in range(settings.seeds)] + [(settings.other_layer, 0)]
    some = lambda kind, seed: SPARSITY[kind] if seed == 0 else SPARSITY[kind][:-1]
    points = [(layer, kind, s, seed) for layer, seed in where for kind in TYPES for s in some(kind, seed)]
    rows = run(settings, points)
    more = []
    for layer, seeds in ((settings.layer, range(min(2, settings.seeds))), (settings.other_layer, (0,))):
        for kind, sparsity in matched(select(rows, layer=layer, seed=0)).items():
            more += [(layer, kind, sparsity, seed) for seed in seeds]
    return rows + [row | {"matched": True} for row in run(settings, more)]


def select(rows: list[dict], **wanted) -> list[dict]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def curve(rows: list[dict], key: str):
    """Log of the CE increase and log of `key`, in rising order of the first."""
    rows = sorted(rows, key=lambda row: row["delta_ce"])
    return np.log([row["delta_ce"] for row in rows]), np.log([row[key] for row in rows])


def turned(rows: list[dict], key: str):
    """Log of `key` and log of the CE increase, in rising order of the first."""
    rows = sorted(rows, key=lambda row: row[key])
    return np.log([row[key] for row in rows]), np.log([row["delta_ce"] for row in rows])


def ratios(seeds: list[list[dict]], kind: str, key: str, of: Callable = curve):
    """For the rows of each seed, what a type has of `key` over what local has, where both have the same CE increase.

    CE increases [20] from the least to the largest that all curves of both types reach, the same for every seed, and
    the ratios there [seeds, 20]; None where there are none. With `of` = turned: the CE increase, where both have the
    same `key`.
    """
    pairs = [[of(select(rows, type=some), key) for some in ("local", kind)] for rows in seeds]
    low = max(at[0] for pair in pairs for at, _ in pair)
    high = min(at[-1] for pair in pairs for at, _ in pair)
    if low >= high:
        return None
    grid = np.linspace(low, high, 20)
    return np.exp(grid), np.exp([np.interp(grid, *b) - np.interp(grid, *a) for a, b in pairs])


def matched(rows: list[dict]) -> dict[str, float]:
    """The sparsity of each type at which its curve says that the CE increase is the middle of what all reach.

    Raises ValueError where the curves have no CE increase in common.
    """
    curves = {kind: curve(select(rows, type=kind), "sparsity") for kind in TYPES}
    low, high = max(at[0] for at, _ in curves.values()), min(at[-1] for at, _ in curves.values())
    if low >= high:
        raise ValueError("the types have no CE increase in common: give other sparsity coefficients")
    return {kind: float(f"{np.exp(np.interp((low + high) / 2, *c)):.3g}") for kind, c in curves.items()}


def interval(found) -> dict:
    """The geometric mean of `ratios` over their range and its 95 % interval over seeds, by Student's t of the logs.

    With it the range, and the ratio at both of its ends: the interval is that of the mean over just this range.
    """
    if found is None:
        return {"mean": None, "low": None, "high": None, "seeds": 0}
    at, values = found
    logs = np.log(values).mean(1)
    ends = np.exp(np.log(values).mean(0))
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5 if len(logs) > 1 else np.nan
    mean, low, high = (
        float(np.exp(logs.mean() + side * half)) if side else float(np.exp(logs.mean())) for side in (0, -1, 1)
    )
    none = lambda v: None if np.isnan(v) else round(v, 4)
    pair = lambda values: [round(float(values[0]), 4), round(float(values[-1]), 4)]
    out = {"mean": none(mean), "low": none(low), "high": none(high), "seeds": len(logs)}
    return out | {"range": pair(at), "at its ends": pair(ends)}


def of_matched(rows: list[dict], key: str) -> dict[str, list[float]]:
    """What each type has of `key` over what local has, in the runs trained to equal CE increase, seed by seed."""
    value = {(row["type"], row["seed"]): row[key] for row in select(rows, matched=True)}
    seeds = sorted({seed for _, seed in value})
    return {kind: [round(value[kind, s] / value["local", s], 4) for s in seeds] for kind in TYPES[1:]}


def triple(rows: list[dict], key: str) -> dict:
    """The local, e2e and e2e + downstream runs whose `key` differs least, and by how much (largest over smallest)."""
    choices = itertools.product(*(select(rows, type=kind) for kind in TYPES))
    spread = lambda some: max(row[key] for row in some) / max(min(row[key] for row in some), 1e-9)
    best = min(choices, key=spread)
    columns = ("layer", "sparsity", "seed", "l0", "alive", "delta_ce", "kl")
    return {
        "spread": round(spread(best), 3),
        **{row["type"]: {column: row[column] for column in ("type", *columns)} for row in best},
    }


MATCHED = {"similar CE increase": "delta_ce", "similar L0": "l0", "similar number alive": "alive"}


def folder(settings: Settings, row: dict) -> Path:
    """The run that a row is about."""
    return settings.runs / name(row["layer"], row["type"], row["sparsity"], row["seed"])


def summarise(settings: Settings, rows: list[dict]) -> dict:
    out = {"settings": plain(settings), "rows": rows}
    for layer, seeds in ((settings.layer, range(settings.seeds)), (settings.other_layer, (0,))):
        # The same coefficients for every seed.
        usable = [row for row in select(rows, layer=layer, matched=False) if row["delta_ce"] > 0]
        if len(seeds) > 1:
            usable = [row for row in usable if row["sparsity"] != SPARSITY[row["type"]][-1]]
        of_seeds = [select(usable, seed=seed) for seed in seeds]
        over = lambda key, of=curve, s=of_seeds: {kind: interval(ratios(s, kind, key, of)) for kind in TYPES[1:]}
        out[f"layer {layer}"] = {
            "L0 at equal CE increase, of local's": over("l0"),
            "living latents at equal CE increase, of local's": over("alive"),
            "CE increase at equal L0, of local's": over("l0", turned),
            "runs trained to equal CE increase, of local's": {
                key: of_matched(select(rows, layer=layer), key) for key in ("delta_ce", "l0", "alive")
            },
            **{title: triple(select(rows, layer=layer, seed=0), key) for title, key in MATCHED.items()},
        }
    return out


def draw(settings: Settings, rows: list[dict], path: Path):
    layers = (settings.layer, settings.other_layer)
    picture, axes = figure(10, 7.5, 2, 2)
    for line, layer in zip(axes, layers):
        for ax, (key, label) in zip(line, (("l0", "L0 (active latents per token)"), ("alive", "living latents"))):
            for kind in TYPES:
                for seed in range(settings.seeds):
                    some = sorted(select(rows, layer=layer, type=kind, seed=seed), key=lambda row: row["delta_ce"])
                    ax.plot(
                        [row[key] for row in some],
                        [row["delta_ce"] for row in some],
                        **STYLES[kind],
                        markersize=6 if seed == 0 else 3,
                        linewidth=1.6 if seed == 0 else 0.5,
                        alpha=1 if seed == 0 else 0.6,
                        label=LABELS[kind] if seed == 0 else None,
                    )
            log_scale(ax.yaxis)
            if key == "l0":
                log_scale(ax.xaxis)
            ax.invert_yaxis()
            ax.set_xlabel(label)
            ax.set_ylabel("CE increase (nats; better is up)")
            seeds = f", {settings.seeds} seeds (thin: seeds after the first)" if layer == settings.layer else ""
            ax.set_title(f"before block {layer}{seeds}", fontsize=10)
    axes[0, 0].legend(frameon=False)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = grid(settings)
    facts = summarise(settings, rows)
    path = keep("e2e_pareto", facts, settings.out)
    draw(settings, rows, path.with_suffix(".png"))
    for layer in (settings.layer, settings.other_layer):
        print(f"\nbefore block {layer}")
        for title, values in facts[f"layer {layer}"].items():
            print(f"  {title}: {values}")
    print(f"\n{path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
