"""Other activation functions at test time: does a code with more or fewer latents still reconstruct well?

Claim (Gao et al. 2024, sec. 5.3, fig. 10): TopK reconstructs worse again if many more latents are kept than in
training; Multi-TopK, trained at k and 4 k, gives a progressive code over all k', and so does ReLU up to all its
positive latents. The effect on the language model's loss is more muted than that on the MSE. It can be better to train
ReLU with a small L1 penalty and to keep fewer latents at test time than to train it with a larger one.

    python -m experiments.progressive_codes

Found here (embedded language model, trained at L0 32, three seeds): TopK does not get worse with more latents. Of its
1,024 latents only 66 have positive pre-activations on a token, and with all of them the NMSE is 0.095 instead of 0.110.
So the question of how far Multi-TopK repairs it does not arise; it is progressive, too (85 positive, NMSE 0.077), and
so is ReLU. Below its k, a threshold is slightly better for TopK than k' (0.94 of the NMSE), not worse. ReLU trained for
twice the L0 and cut to 32 is a little worse than ReLU trained for 32.

Cost: two minutes on 2 cores, after topk_vs_baselines, whose runs it uses. Writes OUT/progressive_codes.json and
OUT/progressive_codes.png.
"""

from dataclasses import dataclass

import numpy as np
import tyro

from experiments import quality
from experiments.grid import figure, log_scale
from experiments.quality import EMBEDDED, LABELS, STYLES, WORLDS, Run, at_l0
from experiments.verdicts import Claim, interval_of_ratio
from jaxsae.evals import progressive

SOURCE = "Gao et al. 2024, sec. 5.3"
FAMILIES = ("topk", "multi_topk", "jumprelu", "relu")
# ReLU trained for more latents, of which fewer are kept.
DENSER = "relu, denser"


@dataclass(frozen=True)
class Settings(quality.Settings):
    curve_tokens: int = 4096
    """Held-out tokens of the curves."""
    kept: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """The values of k' at test time."""


def runs_of(settings: Settings, found: dict) -> dict[tuple[str, int], Run]:
    k, seeds = WORLDS[EMBEDDED].k, range(settings.seeds)
    runs = {(family, seed): at_l0(found, family, k, seed=seed) for family in FAMILIES for seed in seeds}
    return runs | {(DENSER, seed): at_l0(found, "relu", 2 * k, seed=seed) for seed in seeds}


def worst_rise(curve: dict, name: str = "nmse") -> float:
    """The largest factor by which `name` is above the least that fewer latents reach: 1 for a progressive code."""
    order = np.argsort(curve["l0"])
    values = np.array(curve[name])[order]
    return float((values / np.minimum.accumulate(values)).max())


def points(curve: dict) -> list[dict]:
    """Rows of a curve with an L0 of their own: beyond what is positive, more slots change nothing."""
    return list({l0: {"l0": l0, "nmse": value} for l0, value in zip(curve["l0"], curve["nmse"]) if l0 > 0}.values())


def at_l0s(curve: dict, l0: float) -> float:
    """The NMSE of a curve at an L0."""
    return float(quality.read_off(points(curve), "nmse", [l0])[0])


def claims(rows: list[dict]) -> list[Claim]:
    seeds, k = sorted({row["seed"] for row in rows}), WORLDS[EMBEDDED].k
    row = {(r["family"], r["seed"]): r for r in rows}
    over = lambda f: interval_of_ratio([f(seed) for seed in seeds])
    rise = lambda family, name="nmse": over(lambda seed: worst_rise(row[family, seed]["topk"], name))
    measure = "largest factor over the best NMSE with fewer latents"
    # A progressive code: nowhere more than 5 % above the best with fewer.
    near = 1.05
    ce = lambda seed: {"l0": row["topk", seed]["topk"]["l0"], "ce": row["topk", seed]["topk"]["delta_ce"]}
    muted = [worst_rise(ce(seed), "ce") / worst_rise(row["topk", seed]["topk"]) for seed in seeds]
    # All that ReLU has positive is its curve's last point.
    own = lambda seed: points(row["relu", seed]["topk"])[-1]
    fewer = [at_l0s(row[DENSER, seed]["topk"], own(seed)["l0"]) / own(seed)["nmse"] for seed in seeds]
    below = k // 2
    jump = [at_l0s(row["topk", s]["jumprelu"], below) / at_l0s(row["topk", s]["topk"], below) for s in seeds]
    out = [
        Claim(
            "TopK is worse again with many more latents",
            SOURCE,
            "substantially",
            f"{measure}, TopK",
            rise("topk"),
            above=near,
        ),
        Claim(
            "Multi-TopK is progressive over all k'",
            SOURCE,
            "1",
            f"{measure}, Multi-TopK; below {near}",
            rise("multi_topk"),
            below=near,
        ),
        Claim("ReLU is progressive", SOURCE, "1", f"{measure}, ReLU; below {near}", rise("relu"), below=near),
        Claim(
            "Below its k, TopK is worse with a threshold than with k'",
            SOURCE,
            "somewhat worse",
            f"NMSE at L0 {below}, JumpReLU over TopK(k')",
            interval_of_ratio(jump),
            above=1,
        ),
        Claim(
            "Training ReLU denser and keeping fewer latents is better",
            SOURCE,
            "sometimes",
            "NMSE at equal L0, over that of ReLU trained so",
            interval_of_ratio(fewer),
            below=1,
        ),
    ]
    if rise("topk")["mean"] > near:
        out.append(
            Claim(
                "The language model's loss suffers less from it than the MSE",
                SOURCE,
                "muted",
                "the same factor of TopK's CE increase over that of its NMSE",
                interval_of_ratio(muted),
                below=1,
            )
        )
    return out


def draw(rows: list[dict], path):
    picture, axes = figure(10, 4, 1, 2)
    for ax, (name, label) in zip(axes[0], (("nmse", "NMSE"), ("delta_ce", "CE increase (nats)"))):
        for family in FAMILIES:
            for row in rows:
                if row["family"] != family:
                    continue
                first = row["seed"] == 0
                style = STYLES[family] | {
                    "markersize": 4,
                    "linewidth": 1.4 if first else 0.5,
                    "alpha": 1 if first else 0.6,
                }
                style |= {} if first else {"marker": ""}
                ax.plot(row["topk"]["l0"], row["topk"][name], label=LABELS[family] if first else None, **style)
        ax.axvline(WORLDS[EMBEDDED].k, color="0.7", linewidth=1, linestyle=":")
        log_scale(ax.xaxis)
        log_scale(ax.yaxis)
        ax.set_xlabel("latents kept at test time (L0)")
        ax.set_ylabel(label)
    axes[0, 0].legend(frameon=False, fontsize=9)
    axes[0, 0].annotate(
        " L0 of training",
        (WORLDS[EMBEDDED].k, 0.97),
        xycoords=axes[0, 0].get_xaxis_transform(),
        fontsize=8,
        color="0.4",
    )
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    runs = runs_of(settings, quality.search(settings, EMBEDDED))
    quality.trained(settings, runs.values())
    config = progressive.Config(tokens=settings.curve_tokens, k=settings.kept)
    curves = quality.measured(settings, runs.values(), "progressive", config, settings.curve_tokens)
    standard = quality.measured(settings, runs.values(), "standard")
    rows = []
    for (family, seed), run in runs.items():
        row = {"family": family, "seed": seed} | {name: standard[run][name] for name in ("l0", "nmse", "delta_ce")}
        for name in progressive.CURVES:
            curve = {key: curves[run][name][key] for key in ("l0", "nmse", "ce")}
            row[name] = curve | {"delta_ce": [ce - curves[run]["ce_original"] for ce in curve.pop("ce")]}
        rows.append(row)
    draw(rows, quality.finish(settings, "progressive_codes", rows, claims(rows)))


if __name__ == "__main__":
    main()
