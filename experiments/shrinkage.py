"""Do latents' values come out too small? The encoder's values compared with the best ones for the latents it chose.

Claim (Gao et al. 2024, sec. 5.1, fig. 9): with ReLU and an L1 penalty refinement (non-negative least squares on the
latents that are active) makes values larger, with TopK it moves them less and without bias; both gain in MSE by it, and
it closes only part of the gap between them.

    python -m experiments.shrinkage

Found here (embedded language model, L0 32, three seeds): ReLU's values are 31 % too small in the mean, ProLU's as much;
Gated's 4 % and TopK's 2 %, which is little but not nothing. All gain by refinement, ReLU most (NMSE 0.137 to 0.092).
The last part of the claim fails: refined, ReLU is as good as refined TopK and slightly better, so that nothing of the
gap is left. Here it was all in the values, and ReLU's choice of latents is no worse.

Cost: two minutes on 2 cores, after topk_vs_baselines, whose runs it uses. Writes OUT/shrinkage.json and
OUT/shrinkage.png.
"""

from dataclasses import dataclass

import numpy as np
import tyro

from experiments import quality
from experiments.grid import figure
from experiments.quality import EMBEDDED, LABELS, STYLES, WORLDS, at_l0
from experiments.verdicts import Claim, interval, interval_of_ratio
from jaxsae.evals import refinement

SOURCE = "Gao et al. 2024, sec. 5.1"


@dataclass(frozen=True)
class Settings(quality.Settings):
    families: tuple[str, ...] = ("topk", "jumprelu", "gated", "prolu_ste", "relu")
    refined_tokens: int = 4096
    """Held-out tokens whose values are refined."""


def claims(rows: list[dict]) -> list[Claim]:
    seeds = sorted({row["seed"] for row in rows})
    value = {(row["family"], row["seed"]): row for row in rows}
    of = lambda family, name: np.array([value[family, seed][name] for seed in seeds])
    rise = {family: 100 * of(family, "rise") for family in ("topk", "relu", "gated")}
    size = lambda family: np.abs(rise[family])
    gain = lambda family: of(family, "nmse_after") / of(family, "nmse")
    gap = lambda name: of("relu", name) - of("topk", name)
    mean = "mean rise by refinement, % of the mean value"
    return [
        Claim("ReLU's values are too small", SOURCE, "above 0", f"{mean}, ReLU", interval(rise["relu"]), above=0),
        Claim(
            "TopK's values are less biased than ReLU's",
            SOURCE,
            "smaller, near 0",
            f"|{mean}|, TopK minus ReLU, percentage points",
            interval(size("topk") - size("relu")),
            below=0,
        ),
        Claim(
            "TopK's values are not biased",
            SOURCE,
            "near 0",
            f"|{mean}|, TopK; near is below 1 %",
            interval(size("topk")),
            below=1,
        ),
        Claim(
            "Gated shrinks less than ReLU",
            "Rajamanoharan et al. 2024 (Gated)",
            "no shrinkage",
            f"{mean}, Gated minus ReLU, percentage points",
            interval(rise["gated"] - rise["relu"]),
            below=0,
        ),
        Claim(
            "TopK gains in MSE by refinement",
            SOURCE,
            "lower",
            "NMSE of TopK, after over before",
            interval_of_ratio(gain("topk")),
            below=1,
        ),
        Claim(
            "ReLU gains more",
            SOURCE,
            "more",
            "NMSE after over before, ReLU's over TopK's",
            interval_of_ratio(gain("relu") / gain("topk")),
            below=1,
        ),
        Claim(
            "Refinement closes only part of the gap between ReLU and TopK",
            SOURCE,
            "part",
            "gap in NMSE, after over before",
            interval(gap("nmse_after") / gap("nmse")),
            above=0,
        ),
    ]


def draw(rows: list[dict], path):
    picture, axes = figure(9.5, 3.8, 1, 2)
    families = list(dict.fromkeys(row["family"] for row in rows))
    left, right = axes[0]
    edges = np.linspace(-100, 100, refinement.BINS + 1)
    for family in families:
        some = [row for row in rows if row["family"] == family]
        counts = np.mean([np.array(row["histogram"]) / sum(row["histogram"]) for row in some], axis=0)
        style = {name: STYLES[family][name] for name in ("color", "linestyle")}
        left.plot((edges[:-1] + edges[1:]) / 2, 100 * counts, label=LABELS[family], linewidth=1.5, **style)
    left.axvline(0, color="0.7", linewidth=1)
    left.set_xlabel("shift of a value by refinement (% of it)")
    left.set_ylabel("values (%) in bins of 2.5")
    left.set_xlim(-60, 60)
    # Beyond, the last bin holds all values that at least double.
    left.set_ylim(0, 1.1 * max(line.get_ydata()[16:-16].max() for line in left.lines[:-1]))
    left.legend(frameon=False, fontsize=9)
    for at, family in enumerate(families):
        some = [row for row in rows if row["family"] == family]
        for shift, name, fill, label in ((-0.18, "nmse", "0.35", "encoder's"), (0.18, "nmse_after", "0.75", "refined")):
            mean = np.mean([row[name] for row in some])
            right.bar(at + shift, mean, width=0.34, color=fill, label=label if at == 0 else None)
            right.plot([at + shift] * len(some), [row[name] for row in some], "k.", markersize=4)
    right.set_xticks(range(len(families)), [LABELS[family] for family in families])
    right.set_ylabel("NMSE")
    right.set_ylim(0, 1.25 * max(row["nmse"] for row in rows))
    right.legend(frameon=False, fontsize=9, title="values", loc="upper left", ncols=2)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    found, k = quality.search(settings, EMBEDDED), WORLDS[EMBEDDED].k
    points = [(family, seed) for family in settings.families for seed in range(settings.seeds)]
    runs = {(family, seed): at_l0(found, family, k, seed=seed) for family, seed in points}
    quality.trained(settings, runs.values())
    config = refinement.Config(tokens=settings.refined_tokens)
    results = quality.measured(settings, runs.values(), "refinement", config, settings.refined_tokens)
    rows = []
    for (family, seed), run in runs.items():
        result = results[run]
        row = {"family": family, "seed": seed, "nmse": result["nmse"]["before"], "nmse_after": result["nmse"]["after"]}
        row |= {"delta_ce": result["delta_ce"]["before"], "delta_ce_after": result["delta_ce"]["after"]}
        row |= {"l0": result["values"] / result["tokens"], "rise": result["shift"]["of_mean_value"]}
        rows.append(row | {"became_zero": result["shift"]["became_zero"], "histogram": result["shift"]["histogram"]})
    draw(rows, quality.finish(settings, "shrinkage", rows, claims(rows)))


if __name__ == "__main__":
    main()
