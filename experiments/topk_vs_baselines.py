"""Activation functions compared at equal L0: reconstruction, the language model's loss, and known features.

Claim (Gao et al. 2024, sec. 2.3 and 5.2, fig. 2): at equal sparsity TopK has a lower normalised MSE than ReLU with an
L1 penalty, ProLU and Gated, and it improves the language model's loss more than the MSE. Beside them BatchTopK
(Bussmann et al. 2024) and JumpReLU (Rajamanoharan et al. 2024), whose papers claim to be at least as good as TopK.

    python -m experiments.topk_vs_baselines

Found here (three seeds): on the embedded language model TopK's NMSE is 0.71 of ReLU's, 0.58 of ProLU's and 0.92 of
Gated's, means over L0 8 to 64, and its CE increase 0.58 of ReLU's. A part of that is dead latents: at L0 8 the
penalties kill 60 to 80 % of them. At L0 32, where nearly all of theirs live, TopK has 0.81 of ReLU's NMSE, and Gated is
as good as TopK. Multi-TopK is better than TopK at its own k (0.98), not worse. BatchTopK is better (0.91), JumpReLU is
not (1.07): 16 to 56 % of its latents are dead. On synthetic activations (256 features, 8 of which fire) latents are
nearest to the features with Multi-TopK at k 4 (MCC 0.92), with TopK at k 8 (0.86), and with ReLU at an L0 of 34 (0.87),
where TopK's are no longer near (0.57): TopK finds them at the right L0, ReLU above it.

Every family has the best of three learning rates, at L0 32 (8 for synthetic activations) on the first seed; the best is
the middle one, but for ProLU on synthetic activations, where it is the largest. Nothing else was searched: JumpReLU has
its default bandwidth, and dead latents are not resampled. Coefficients of penalties come from the same search, and
curves are interpolated to equal L0.

Cost: about thirty-five minutes on 2 cores, most of it for BatchTopK and Multi-TopK. The same command resumes after a
kill. Writes OUT/topk_vs_baselines.json and OUT/topk_vs_baselines.png; the runs stay in RUNS, where the other
experiments find them.
"""

from dataclasses import dataclass

import numpy as np
import tyro

from experiments import quality
from experiments.grid import figure, log_scale
from experiments.quality import EMBEDDED, LABELS, STYLES, SYNTHETIC, WORLDS, at_l0
from experiments.verdicts import Claim, interval, interval_of_ratio

GAO = "Gao et al. 2024, fig. 2"
# What is measured in each world, and what it is called on an axis.
METRICS = {
    EMBEDDED: {"nmse": "NMSE", "delta_ce": "CE increase (nats)"},
    SYNTHETIC: {"mcc": "mean cosine with the features (MCC)", "f1": "F1 of features"},
}
# Lower is better, on a logarithmic scale.
LOG = ("nmse", "delta_ce")


@dataclass(frozen=True)
class Settings(quality.Settings):
    pass


def rows_of(settings: Settings, world: str) -> tuple[list[dict], dict]:
    """A row for each autoencoder, and what the search found."""
    found = quality.search(settings, world)
    points = [
        (family, k, seed)
        for k in WORLDS[world].ks
        for family in WORLDS[world].families
        for seed in range(settings.seeds)
    ]
    runs = {point: at_l0(found, point[0], point[1], world, seed=point[2]) for point in points}
    summaries = quality.trained(settings, runs.values())
    evaluation = "standard" if world == EMBEDDED else "synthetic"
    results = quality.measured(settings, runs.values(), evaluation)
    rows = []
    for (family, k, seed), run in runs.items():
        result, summary = results[run], summaries[run]
        row = {"world": world, "family": family, "k": k, "seed": seed, "lr": run.lr, "coef": run.coef}
        row |= {"l0": (result if world == EMBEDDED else summary)["l0"], "dead_fraction": summary["dead_fraction"]}
        rows.append(row | {name: result[name] for name in METRICS[world]})
    return rows, {family: {"lr": f.lr, "nmse at lr": f.nmse} for family, f in found.items()}


def at_ks(rows: list[dict], world: str, name: str) -> dict[str, np.ndarray]:
    """{family: `name` at each L0 of the world [seeds, ks]}, read off each seed's curve."""
    seeds = sorted({row["seed"] for row in rows})
    some = lambda family, seed: [row for row in rows if (row["family"], row["seed"]) == (family, seed)]
    families = dict.fromkeys(row["family"] for row in rows)
    read = lambda family, seed: quality.read_off(some(family, seed), name, WORLDS[world].ks, log=name in LOG)
    return {family: np.array([read(family, seed) for seed in seeds]) for family in families}


def claims(embedded: list[dict], synthetic: list[dict]) -> list[Claim]:
    nmse, ce = (at_ks(embedded, EMBEDDED, name) for name in METRICS[EMBEDDED])
    # Geometric means over L0 of TopK's over the other's, one for each seed.
    ratio = lambda values, family: interval_of_ratio(np.exp(np.log(values["topk"] / values[family]).mean(1)))
    out = []
    for family in ("relu", "prolu_ste", "gated"):
        claim = f"TopK reconstructs better than {LABELS[family]} at equal L0"
        measure = f"NMSE of TopK over {LABELS[family]}'s"
        out.append(Claim(claim, GAO, "lower", measure, ratio(nmse, family), below=1))
    claim, measure = "TopK costs the language model less than ReLU at equal L0", "CE increase of TopK over ReLU's"
    out.append(Claim(claim, "Gao et al. 2024, fig. 5", "lower", measure, ratio(ce, "relu"), below=1))
    more = np.log(ce["topk"] / ce["relu"]).mean(1) - np.log(nmse["topk"] / nmse["relu"]).mean(1)
    claim = "TopK improves on ReLU more in the language model's loss than in MSE"
    measure = "ratio of CE increases over ratio of NMSEs"
    out.append(Claim(claim, "Gao et al. 2024, fig. 5", "below 1", measure, interval_of_ratio(np.exp(more)), below=1))
    claim = "Multi-TopK is slightly worse than TopK at its own k"
    measure = "NMSE of Multi-TopK over TopK's"
    inverse = lambda values, family: interval_of_ratio(np.exp(np.log(values[family] / values["topk"]).mean(1)))
    out.append(Claim(claim, "Gao et al. 2024, sec. 5.3", "above 1", measure, inverse(nmse, "multi_topk"), above=1))
    for family, source in (("batch_topk", "Bussmann et al. 2024"), ("jumprelu", "Rajamanoharan et al. 2024")):
        claim, measure = f"{LABELS[family]} reconstructs better than TopK", f"NMSE of {LABELS[family]} over TopK's"
        out.append(Claim(claim, source, "lower", measure, inverse(nmse, family), below=1))
    mcc = at_ks(synthetic, SYNTHETIC, "mcc")
    # At the L0 that the activations were made with.
    at = WORLDS[SYNTHETIC].ks.index(WORLDS[SYNTHETIC].k)
    difference = interval((mcc["topk"] - mcc["relu"])[:, at])
    measure = f"MCC of TopK minus ReLU's at L0 {WORLDS[SYNTHETIC].k}, that of the features"
    out.append(Claim("TopK finds known features better than ReLU", "asked here", "none", measure, difference, above=0))
    best = interval(mcc["topk"].max(1) - mcc["relu"].max(1))
    claim, measure = "also each at the L0 that is best for it", "largest MCC of TopK minus ReLU's"
    out.append(Claim(claim, "asked here", "none", measure, best, above=0))
    return out


def draw(rows: dict[str, list[dict]], path):
    picture, axes = figure(10.5, 8.2, 2, 2)
    for line, (world, names) in zip(axes, METRICS.items()):
        for ax, (name, label) in zip(line, names.items()):
            for family in WORLDS[world].families:
                some = [row for row in rows[world] if row["family"] == family]
                means = lambda key, k, s=some: np.mean([row[key] for row in s if row["k"] == k])
                points = [(means("l0", k), means(name, k)) for k in WORLDS[world].ks]
                ax.plot(*zip(*points), **STYLES[family], label=LABELS[family], markersize=6, linewidth=1.3)
                ax.plot(
                    [row["l0"] for row in some],
                    [row[name] for row in some],
                    linestyle="",
                    marker=".",
                    markersize=3,
                    color=STYLES[family]["color"],
                    alpha=0.5,
                )
            log_scale(ax.xaxis)
            ax.set_xticks(WORLDS[world].ks)
            if name in LOG:
                log_scale(ax.yaxis, (1, 1.5, 2, 3, 5, 7))
            ax.set_xlabel("L0 (active latents per token)")
            ax.set_ylabel(label)
        if world == SYNTHETIC:
            for ax in line:
                ax.axvline(WORLDS[world].k, color="0.7", linewidth=1, linestyle=":")
        line[0].set_title(f"{world}, n {WORLDS[world].n}", fontsize=10, loc="left")
    axes[0, 0].legend(frameon=False, fontsize=9)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows, searches = {}, {}
    for world in (EMBEDDED, SYNTHETIC):
        rows[world], searches[world] = rows_of(settings, world)
    judged = claims(rows[EMBEDDED], rows[SYNTHETIC])
    draw(rows, quality.finish(settings, "topk_vs_baselines", rows[EMBEDDED] + rows[SYNTHETIC], judged, search=searches))


if __name__ == "__main__":
    main()
