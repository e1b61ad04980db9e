"""On how few outputs of the language model does the ablation of one latent have an effect?

Claim (Gao et al. 2024, sec. 4.5): ablating a latent moves 10 to 14 % of the outputs (GPT-2 small, post-MLP stream of
block 8), a channel of the stream 60 %, where noise would move 2 / pi = 64 %. Effects become sparser with larger k, and
less sparse again as k nears the width (k 512 of d 768).

    python -m experiments.ablation_sparsity

Found here (embedded language model, three seeds): it does not hold. Latents, channels and random directions all move 14
% of the outputs over 16 positions, whatever k is, and 62 to 63 % at the token itself, like noise: 14 % is what is left
if only that one of 16 positions is moved much. With two blocks and an unembedding from 192 numbers to 4,096 outputs
after the autoencoder, every direction moves all outputs; latents do so by one point less than channels.

Cost: two minutes on 2 cores, after topk_vs_baselines, whose runs it uses. Writes OUT/ablation_sparsity.json and
OUT/ablation_sparsity.png.
"""

from dataclasses import dataclass

import numpy as np
import tyro

from experiments import quality
from experiments.grid import figure, log_scale
from experiments.quality import EMBEDDED, at_l0
from experiments.verdicts import Claim, interval
from jaxsae.evals import ablation

SOURCE = "Gao et al. 2024, sec. 4.5"
WIDTH = 192
LARGER = "the model: one with more blocks after the autoencoder, whose outputs are not all near one another"


@dataclass(frozen=True)
class Settings(quality.Settings):
    ks: tuple[int, ...] = (8, 16, 32, 64, 128)
    """The last one is two thirds of the width, as 512 is in the paper."""
    others: int = 8
    """Channels, and random directions, that are ablated at each token."""
    tokens_ablated: int = 48
    """Tokens whose latents are ablated one by one, for each autoencoder."""


def claims(rows: list[dict]) -> list[Claim]:
    seeds, ks = sorted({row["seed"] for row in rows}), sorted({row["k"] for row in rows})
    row = {(r["k"], r["seed"]): r for r in rows}
    of = lambda k, name="latents": 100 * np.array([row[k, seed][name] for seed in seeds])
    mean = lambda name: np.mean([of(k, name) for k in ks], axis=0)
    points = "percentage points"
    return [
        Claim(
            "Ablating a latent moves fewer outputs than ablating a channel",
            SOURCE,
            "10 to 14 % against 60 %",
            f"share moved over 16 positions, latents minus channels, {points}",
            interval(mean("latents") - mean("channels")),
            below=0,
            size=-46,
            needs=LARGER,
        ),
        Claim(
            "also at the token itself",
            "asked here",
            "none",
            f"share moved at the token, latents minus channels, {points}",
            interval(mean("latents_at_token") - mean("channels_at_token")),
            below=0,
            size=-46,
            needs=LARGER,
        ),
        Claim(
            "Channels move almost as many outputs as noise would",
            SOURCE,
            "60 % of noise's 64 %",
            "share moved by channels over 16 positions, %; most is above 50",
            interval(mean("channels")),
            above=50,
            needs=LARGER,
        ),
        Claim(
            "Effects are sparser with larger k",
            SOURCE,
            "sparser",
            f"share moved over 16 positions, k {ks[-2]} minus k {ks[0]}, {points}",
            interval(of(ks[-2]) - of(ks[0])),
            below=0,
            needs=LARGER,
        ),
        Claim(
            "The trend turns as k nears the width",
            SOURCE,
            "at k 512 of d 768",
            f"share moved over 16 positions, k {ks[-1]} minus k {ks[-2]}, {points} (d {WIDTH})",
            interval(of(ks[-1]) - of(ks[-2])),
            above=0,
            needs=LARGER,
        ),
    ]


def draw(rows: list[dict], path):
    picture, axes = figure(9.5, 3.8, 1, 2)
    ks = sorted({row["k"] for row in rows})
    styles = {
        "latents": ({"color": "#000000", "marker": "o", "linestyle": "-"}, "latents"),
        "channels": ({"color": "#1b6ca8", "marker": "s", "linestyle": "--"}, "channels of the stream"),
        "directions": ({"color": "#8a8a8a", "marker": "^", "linestyle": ":"}, "random directions"),
    }
    for ax, (end, title) in zip(axes[0], (("", "over 16 positions"), ("_at_token", "at the token itself"))):
        for kind, (style, label) in styles.items():
            of = lambda k, name=kind + end: [100 * row[name] for row in rows if row["k"] == k]
            ax.plot(ks, [np.mean(of(k)) for k in ks], label=label, **style)
            for k in ks:
                ax.plot(
                    [k] * len(of(k)), of(k), linestyle="", marker=".", markersize=4, color=style["color"], alpha=0.6
                )
        ax.axhline(200 / np.pi, color="0.6", linewidth=1)
        note = {"xytext": (0, 3), "textcoords": "offset points", "fontsize": 8, "color": "0.4"}
        ax.annotate("noise: 2 / π", (ks[0], 200 / np.pi), **note)
        log_scale(ax.xaxis)
        ax.set_xticks(ks)
        ax.set_ylim(0, 72)
        ax.set_xlabel("k of TopK")
        ax.set_title(title, fontsize=10)
    axes[0, 0].set_ylabel("outputs moved by one ablation (%)")
    axes[0, 0].legend(frameon=False, fontsize=9, loc="center left")
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    found = quality.search(settings, EMBEDDED, ("topk",))
    runs = {(k, seed): at_l0(found, "topk", k, seed=seed) for k in settings.ks for seed in range(settings.seeds)}
    quality.trained(settings, runs.values())
    config = ablation.Config(tokens=settings.tokens_ablated, others=settings.others)
    results = quality.measured(settings, runs.values(), "ablation", config)
    rows = []
    for (k, seed), run in runs.items():
        row = {"k": k, "seed": seed}
        for kind in ablation.KINDS:
            own = results[run][kind]
            row |= {
                kind: own["sparsity"],
                f"{kind}_se": own["sparsity_se"],
                f"{kind}_at_token": own["sparsity_at_token"],
            }
        rows.append(row)
    draw(rows, quality.finish(settings, "ablation_sparsity", rows, claims(rows)))


if __name__ == "__main__":
    main()
