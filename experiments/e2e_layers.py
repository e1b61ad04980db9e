"""What becomes of an autoencoder's errors in later layers?

Claim (Braun et al. 2024, sec. 3.3 and app. B): an autoencoder trained end to end reconstructs its own layer badly, and
the later layers much better but never as well as a local one does; with downstream errors in the loss it is as
close to the original at later layers as a local one. Its output is much shorter than the activation: of e2e most of all
at position 0, of e2e + downstream so before block 2 of GPT-2 only, while before blocks 6 and 10 it is right there.

Found here, at similar CE increase, one seed: the errors are as claimed. Before block 3 the squared error of e2e is 13
times local's at its own place and 1.8 times at the end of the model; before block 5, 6 times and 2.9 times. That of e2e
+ downstream is 5 times local's before block 3, 1.3 times after the next block and 1.05 times at the end; before block
5 it is twice local's, and 1.03 times after that block, which is the end and the only error it was trained on. Outputs
are shorter before block 3 (e2e 0.59 of the activation, e2e + downstream 0.75, local 0.97). At position 0 they are 0.58
and 0.82: e2e is not shorter there than elsewhere, and e2e + downstream longer, as in the deeper of the paper's layers.
Before block 5 it is 0.56 instead of 0.65 for e2e, and 0.77 instead of 0.78 for e2e + downstream. The activation at
position 0 is not far longer than the others in this model, as it is in GPT-2.

    python -m experiments.e2e_layers

Cost: a few minutes after experiments/e2e_pareto.py, whose runs it uses (and trains if they are missing, with the same
flags). Writes OUT/e2e_layers.json and OUT/e2e_layers.png.
"""

from pathlib import Path

import tyro

from experiments import e2e_pareto as pareto
from experiments.grid import LABELS, STYLES, figure, keep, log_scale, subjects
from jaxsae.evals import measure

TOKENS = 65_536  # held out


def at(place: str) -> float:
    """Where a hook point is drawn: the number of blocks before it."""
    _, layer, kind = place.split(".")
    return int(layer) + (kind == "hook_resid_post")


def draw(settings: pareto.Settings, facts: dict, path: Path):
    layers = (settings.layer, settings.other_layer)
    columns = {
        "mse": "squared error, mean over d",
        "no_pos0_mse": "the same without position 0",
        "no_pos0_explained_variance": "explained variance,\nwithout position 0",
    }
    picture, axes = figure(12, 6.5, 2, 3)
    for line, layer in zip(axes, layers):
        for ax, (column, title) in zip(line, columns.items()):
            for kind in pareto.TYPES:
                places = facts[f"layer {layer}"][kind]["places"]
                x, y = [at(place) for place in places], [places[place][column] for place in places]
                ax.plot(x, y, **STYLES[kind], label=LABELS[kind])
            if column.endswith("mse"):
                log_scale(ax.yaxis)
            else:
                ax.set_ylim(min(0, *ax.get_ylim()), 1)
            ax.set_title(f"{title}" if layer == layers[0] else "", fontsize=10)
            ax.set_xlabel("blocks before this place")
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set_ylabel(f"autoencoder before block {layer}" if column == "mse" else "")
    axes[0, -1].legend(frameon=False)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(pareto.Settings, description=__doc__)
    rows = pareto.grid(settings)
    facts = {"tokens": TOKENS}
    for layer in (settings.layer, settings.other_layer):
        chosen = pareto.triple(pareto.select(rows, layer=layer, seed=0), "delta_ce")
        facts[f"layer {layer}"] = {"spread of the CE increase": chosen["spread"]}
        folders = {kind: pareto.folder(settings, chosen[kind]) for kind in pareto.TYPES}
        for kind, subject in subjects(folders, "held_out", TOKENS).items():
            row, places = chosen[kind], measure("later_layers", subject)
            facts[f"layer {layer}"][kind] = {"run": row, "places": places}
            here = places[subject.hook]
            print(
                f"layer {layer} {LABELS[kind]:<17} CE +{row['delta_ce']:.3f}  L0 {row['l0']:.0f}  "
                f"||xhat||/||x|| at position 0 {here['pos0_l2_ratio']:.2f}, elsewhere {here['no_pos0_l2_ratio']:.2f}  "
                f"explained variance {here['no_pos0_explained_variance']:.2f} here, "
                f"{places[list(places)[-1]]['no_pos0_explained_variance']:.2f} at the end"
            )
    path = keep("e2e_layers", facts, settings.out)
    draw(settings, facts, path.with_suffix(".png"))
    print(f"{path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
