"""Do autoencoders trained end to end find other features?

Claims (Braun et al. 2024, sec. 3.4): features of e2e autoencoders are the most orthogonal to one another, then those of
e2e + downstream, then local ones. Two seeds find the same features when trained locally or with downstream errors, but
not when trained on the KL divergence alone. e2e + downstream features fall into two groups, one that local autoencoders
have too and one that they do not: their nearest local neighbours' cosines have two modes.

Found here, at similar CE increase: orthogonality does not order as claimed. e2e + downstream features are the most
orthogonal (mean of the largest cosine 0.33 before block 3, local 0.39, e2e 0.42; before block 5 0.37, 0.40, 0.44). A
nearest neighbour is the nearer the more features there are, and e2e has the most: with as many drawn from each
dictionary it is 0.33, 0.37 and 0.39 (block 5: 0.37, 0.40, 0.43), the same order and little between the last two. Two
seeds agree least for e2e (0.46 against 0.53 and 0.54; with as many of each 0.40, 0.49 and 0.53), as claimed, but none
of the types comes near 1 after so little training. Nearest local neighbours are far for e2e (0.38) and nearer for e2e +
downstream (0.57), as claimed; of two modes there is no sign (dip test p 0.99 of 568 features before block 5; p 0.92
before block 3, where there are 117, too few to tell two groups that overlap).

    python -m experiments.e2e_geometry

Cost: a few minutes after experiments/e2e_pareto.py, whose runs it uses (and trains if they are missing, with the same
flags). Needs umap-learn, diptest and scipy (pip install -e ".[experiments]"). Writes OUT/e2e_geometry.json,
OUT/e2e_geometry.png and OUT/e2e_umap.png.

A latent is alive here if it is active on 131 thousand tokens with weights at rest. Whether there are two modes is
Hartigan's dip test, which rejects one mode if p is small; where they are is read from a kernel density estimate.
"""

from pathlib import Path

import diptest
import jax
import numpy as np
import tyro
import umap
from scipy import stats

from experiments import e2e_pareto as pareto
from experiments.grid import LABELS, STYLES, figure, keep, subjects
from jaxsae.evals.geometry import alive, directions, frequencies, nearest, nearest_other

TOKENS = 131_072  # of training text, over which a latent is alive if it is active once
DRAWS = 20  # of as many latents from each dictionary
THINNED = "mean of the largest cosine, dictionaries thinned to the smallest one's size"


def dictionaries_of(settings: pareto.Settings, layer: int, rows: dict[str, dict], seed: int) -> dict:
    """{type: unit rows of the living latents}, of a run of each type at one layer."""
    if not rows:
        return {}
    name = lambda kind, row: pareto.name(layer, kind, row["sparsity"], seed)
    folders = {kind: settings.runs / name(kind, row) for kind, row in rows.items()}
    found = {}
    for kind, subject in subjects(folders, "train", TOKENS).items():
        with jax.set_mesh(subject.mesh):
            found[kind] = np.asarray(directions(subject.sae, alive(frequencies(subject))))
    return found


def mean(values) -> dict:
    """The mean of a sample and its 95 % bootstrap interval."""
    found = stats.bootstrap((values,), np.mean, n_resamples=1000, rng=np.random.default_rng(0), batch=100)
    low, high = found.confidence_interval
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "count": len(values)}


def difference(a, b) -> dict:
    """The difference of two means and its 95 % bootstrap interval."""
    of = lambda a, b, axis=-1: a.mean(axis) - b.mean(axis)
    found = stats.bootstrap((a, b), of, n_resamples=1000, rng=np.random.default_rng(0), batch=100)
    low, high = found.confidence_interval
    return {"difference": float(of(a, b)), "low": float(low), "high": float(high)}


def thinned(function, size: int, *dictionaries) -> float:
    """The mean of function(*dictionaries) with `size` rows of each, drawn at random DRAWS times."""
    random = np.random.default_rng(0)
    some = lambda D: D[random.choice(len(D), size, replace=False)]
    return float(np.mean([np.asarray(function(*map(some, dictionaries))).mean() for _ in range(DRAWS)]))


def modes(values) -> dict:
    """Hartigan's dip test, and the peaks of a kernel density estimate."""
    dip, p = diptest.diptest(np.asarray(values, np.float64))
    at = np.linspace(values.min(), values.max(), 512)
    density = stats.gaussian_kde(values)(at)
    peaks = [
        i for i in range(1, 511) if density[i - 1] < density[i] >= density[i + 1] and density[i] > density.max() / 20
    ]
    return {"dip": float(dip), "p": float(p), "peaks": [round(float(at[i]), 3) for i in peaks]}


def measure(settings: pareto.Settings, layer: int, matched: list[dict]) -> tuple[dict, dict, dict]:
    """Facts, samples of cosines to draw, and the dictionaries of the first seed."""
    first = {row["type"]: row for row in pareto.select(matched, seed=0)}
    dictionaries = dictionaries_of(settings, layer, first, 0)
    samples = {"within": {kind: nearest_other(D) for kind, D in dictionaries.items()}}
    # A nearest one is the nearer, the more there are.
    size = min(map(len, dictionaries.values()))
    equal = {"within": {kind: thinned(nearest_other, size, D) for kind, D in dictionaries.items()}}
    others = {row["type"]: row for row in pareto.select(matched, seed=1)}
    if others:
        second = dictionaries_of(settings, layer, others, 1)
        samples["cross-seed"] = {kind: nearest(D, second[kind]) for kind, D in dictionaries.items()}
        size = min(size, *map(len, second.values()))
        equal["cross-seed"] = {kind: thinned(nearest, size, D, second[kind]) for kind, D in dictionaries.items()}
    samples["to local"] = {kind: nearest(dictionaries[kind], dictionaries["local"]) for kind in pareto.TYPES[1:]}
    samples = {title: {kind: np.asarray(v) for kind, v in of.items()} for title, of in samples.items()}
    facts = {
        "runs": matched,
        "living latents": {kind: len(D) for kind, D in dictionaries.items()},
        "mean of the largest cosine": {t: {kind: mean(v) for kind, v in of.items()} for t, of in samples.items()},
        THINNED: equal,
        "within, local minus": {
            kind: difference(samples["within"]["local"], samples["within"][kind]) for kind in pareto.TYPES[1:]
        },
        "modes": {title: {kind: modes(v) for kind, v in of.items()} for title, of in samples.items()},
    }
    return facts, samples, dictionaries


def draw(layers: dict[int, dict], path: Path):
    titles = {"within": "same dictionary", "cross-seed": "dictionary of another seed", "to local": "local dictionary"}
    picture, axes = figure(12, 3.2 * len(layers), len(layers), 3)
    for line, (layer, samples) in zip(axes, layers.items()):
        for ax, (title, label) in zip(line, titles.items()):
            for kind, values in samples.get(title, {}).items():
                style = {key: value for key, value in STYLES[kind].items() if key != "marker"}
                ax.hist(
                    values, 33, range=(0, 1), density=True, histtype="step", linewidth=1.6, label=LABELS[kind], **style
                )
                ax.axvline(values.mean(), linewidth=0.8, **style)
            if title not in samples:
                ax.text(0.5, 0.5, "one seed only", ha="center")
            ax.set_xlim(0, 1)
            ax.set_xlabel(f"largest cosine in the {label}")
            ax.set_ylabel(f"before block {layer}" if title == "within" else "")
    axes[0, 0].legend(frameon=False)
    picture.savefig(path, dpi=110)


def draw_umap(dictionaries: dict, path: Path):
    picture, axes = figure(12, 6, 1, 2)
    for ax, kind in zip(axes[0], ("e2e_downstream", "e2e")):
        pair = np.concatenate([dictionaries[kind], dictionaries["local"]])
        points = umap.UMAP(random_state=1).fit_transform(pair)
        parts = {kind: points[: len(dictionaries[kind])], "local": points[len(dictionaries[kind]) :]}
        for of, fill in (("local", False), (kind, True)):
            color = STYLES[of]["color"]
            marks = {"c": color} if fill else {"facecolors": "none", "edgecolors": color}
            ax.scatter(
                *parts[of].T, s=14, marker=STYLES[of]["marker"], linewidths=0.7, alpha=0.8, label=LABELS[of], **marks
            )
        ax.legend(frameon=False)
        ax.set_title(f"{LABELS[kind]} and local")
        ax.set_xticks([])
        ax.set_yticks([])
    picture.suptitle("UMAP of decoder directions of similar CE increase")
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(pareto.Settings, description=__doc__)
    rows = pareto.grid(settings)
    facts, samples, dictionaries = {"tokens": TOKENS}, {}, None
    for layer in (settings.layer, settings.other_layer):
        found = measure(settings, layer, pareto.select(rows, layer=layer, matched=True))
        facts[f"layer {layer}"], samples[layer], some = found
        dictionaries = dictionaries or some
        for title, of in facts[f"layer {layer}"]["mean of the largest cosine"].items():
            said = ", ".join(
                f"{LABELS[kind]} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for kind, v in of.items()
            )
            print(f"layer {layer} {title}: {said}")
        print(f"layer {layer} thinned to equal sizes: {facts[f'layer {layer}'][THINNED]}")
        for kind, v in facts[f"layer {layer}"]["modes"]["to local"].items():
            print(f"layer {layer} {LABELS[kind]} to local: dip {v['dip']:.4f}, p {v['p']:.4f}, peaks at {v['peaks']}")
    path = keep("e2e_geometry", facts, settings.out)
    draw(samples, path.with_suffix(".png"))
    draw_umap(dictionaries, path.with_name("e2e_umap.png"))
    print(f"{path}, {path.with_suffix('.png')} and {path.with_name('e2e_umap.png')}")


if __name__ == "__main__":
    main()
