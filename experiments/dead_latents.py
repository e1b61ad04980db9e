"""What keeps latents alive: the initialisation with encoder and decoder parallel ("tied"), and AuxK, each on and off.

Claim (Gao et al. 2024, sec. 2.4, app. C.1, fig. 15): both reduce the share of dead latents, which is up to 90 % without
them in some ablations, and together they remove nearly all (7 % of 16 million latents); without them it grows with n.

    python -m experiments.dead_latents

Found here (embedded language model, three seeds): it holds. At n 2048, 84 % of the latents are dead without both, 12 %
with tied initialisation, 6 % with both, and without both the share rises from 64 % at n 256. The initialisation does
nearly all of it: AuxK alone leaves 82 %, within runs of 800 steps, of which it sees the last four fifths, because a
latent is dead after a fifth of the run. Not tied means --sae.init orthogonal: PyTorch's default encoder and a random
tight frame, so the encoder's norms differ too. Tied initialisation takes the NMSE to 0.58 of that without.

Cost: about four minutes on 2 cores, after topk_vs_baselines, whose runs it uses. The same command resumes after a
kill. Writes OUT/dead_latents.json and OUT/dead_latents.png.
"""

from dataclasses import dataclass

import numpy as np
import tyro

from experiments import quality
from experiments.grid import figure, log_scale
from experiments.quality import EMBEDDED
from experiments.verdicts import Claim, interval, interval_of_ratio

SOURCE = "Gao et al. 2024, sec. 2.4"
# (init, AuxK): how it is drawn and called.
VARIANTS = {
    ("tied", True): ({"color": "#000000", "marker": "o", "linestyle": "-"}, "tied, AuxK"),
    ("tied", False): ({"color": "#1b6ca8", "marker": "s", "linestyle": "--"}, "tied, no AuxK"),
    ("orthogonal", True): ({"color": "#c8661a", "marker": "^", "linestyle": "-."}, "not tied, AuxK"),
    ("orthogonal", False): ({"color": "#8a8a8a", "marker": "D", "linestyle": ":"}, "not tied, no AuxK"),
}


@dataclass(frozen=True)
class Settings(quality.Settings):
    ns: tuple[int, ...] = (256, 1024, 2048)


def claims(rows: list[dict]) -> list[Claim]:
    seeds, n = sorted({row["seed"] for row in rows}), max(row["n"] for row in rows)
    share = {(row["n"], row["init"], row["auxk"], row["seed"]): row["dead_fraction"] for row in rows}
    dead = lambda init, auxk, n=n: np.array([share[n, init, auxk, seed] for seed in seeds])
    nothing, both = dead("orthogonal", False), dead("tied", True)
    points = lambda values: interval(100 * values)
    at = f"dead share at n {n}, percentage points"
    lost = lambda a, b: points(dead(*a) - dead(*b))
    least = min(row["n"] for row in rows)
    nmse = {(row["init"], row["seed"]): row["nmse"] for row in rows if row["n"] == n and row["auxk"]}
    better = interval_of_ratio([nmse["tied", seed] / nmse["orthogonal", seed] for seed in seeds])
    larger = "longer training: the paper's runs read a hundred thousand times as many tokens"
    return [
        Claim(
            "AuxK reduces dead latents",
            SOURCE,
            "fewer",
            f"{at}: with AuxK minus without (tied)",
            lost(("tied", True), ("tied", False)),
            below=0,
            needs=larger,
        ),
        Claim(
            "Tied initialisation reduces dead latents",
            SOURCE,
            "fewer",
            f"{at}: tied minus not (no AuxK)",
            lost(("tied", False), ("orthogonal", False)),
            below=0,
            needs=larger,
        ),
        Claim(
            "Together they remove nearly all",
            SOURCE,
            "7 % left at n 16 million",
            f"dead share at n {n}, %, with both",
            points(both),
            below=7,
            needs=larger,
        ),
        Claim(
            "Without them most are dead",
            SOURCE,
            "up to 90 %",
            f"dead share at n {n}, %, with neither",
            points(nothing),
            above=50,
            needs=larger,
        ),
        Claim(
            "Without them the dead share grows with n",
            "Gao et al. 2024, fig. 15",
            "grows",
            f"dead share with neither, percentage points: n {n} minus n {least}",
            points(nothing - dead("orthogonal", False, least)),
            above=0,
            needs=larger,
        ),
        Claim(
            "Tied initialisation improves MSE",
            "Gao et al. 2024, fig. 16",
            "lower",
            f"NMSE at n {n} with AuxK, tied over not",
            better,
            below=1,
        ),
    ]


def draw(rows: list[dict], path):
    picture, axes = figure(9, 3.8, 1, 2)
    ns = sorted({row["n"] for row in rows})
    for ax, (name, factor) in zip(axes[0], (("dead_fraction", 100), ("nmse", 1))):
        for (init, auxk), (style, label) in VARIANTS.items():
            values = [[factor * r[name] for r in rows if (r["n"], r["init"], r["auxk"]) == (n, init, auxk)] for n in ns]
            ax.plot(ns, [np.mean(v) for v in values], label=label, **style)
            for n, own in zip(ns, values):
                ax.plot([n] * len(own), own, linestyle="", marker=".", markersize=4, color=style["color"], alpha=0.6)
        log_scale(ax.xaxis)
        ax.set_xticks(ns)
        ax.set_xlabel("latents n")
    log_scale(axes[0, 1].yaxis, (1, 1.2, 1.5, 2, 3, 5, 7))
    axes[0, 0].set_ylim(-3, 103)
    axes[0, 0].set_ylabel("dead latents (%)")
    axes[0, 1].set_ylabel("NMSE")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(0, 0.4))
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    lr = quality.search(settings, EMBEDDED, ("topk",))["topk"].lr
    points = [(n, *variant, seed) for n in settings.ns for variant in VARIANTS for seed in range(settings.seeds)]
    runs = {
        (n, init, auxk, seed): quality.topk_of_size(lr, n, seed=seed, init=init, auxk=auxk)
        for n, init, auxk, seed in points
    }
    summaries = quality.trained(settings, runs.values())
    rows = [
        {"n": n, "init": init, "auxk": auxk, "seed": seed, "lr": r.lr}
        | {name: summaries[r][name] for name in ("dead_fraction", "nmse", "l0")}
        for (n, init, auxk, seed), r in runs.items()
    ]
    draw(rows, quality.finish(settings, "dead_latents", rows, claims(rows)))


if __name__ == "__main__":
    main()
