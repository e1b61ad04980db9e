"""How latents are shared out between features that are points and features that are manifolds.

Claim (Michaud, Gorton and McGrath 2025): if features fire with frequencies i^-(1 + alpha), and the loss of a feature
falls as a power beta of the latents it has, there are two regimes. With beta above alpha, as for features that one
latent represents, the number of features found grows in proportion to n, and the loss falls as n^-alpha. With beta
below alpha, as for manifolds of many dimensions, an autoencoder tiles the most frequent ones: it finds features more
slowly than in proportion to n, and the loss falls as n^-beta.

    python -m experiments.scaling_synthetic

Found here (one run of each size, n 32 to 2048): the loss of manifolds falls more slowly, with an exponent of -0.18
(-0.26 to -0.10) where that of points is -0.38. Of points an autoencoder finds n^0.86 (0.75 to 0.96), 875 of 1024 with
2048 latents, of manifolds n^0.85 (0.70 to 1.01), but five times fewer: 3 latents at most go to one point, 14 to one
manifold. That the two exponents differ is not seen.

Cost: about 15 minutes on 2 cores: 7 sizes on two made worlds of 1024 features with the same frequencies, one where a
feature is a direction, and one where it is a sphere in 4 dimensions. After a kill, the same command resumes. A latent
belongs to the feature in whose subspace most of its decoder's direction lies; a feature is found if a latent lies in it
by more than MATCH. Writes OUT/scaling_synthetic.json, .csv and .png.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import jaxsae
from experiments import scaling_grid as grid
from experiments.grid import figure, log_scale
from experiments.verdicts import Claim
from jaxsae.config import Config, with_fields
from jaxsae.data import synthetic
from jaxsae.sweep import product

WORLDS = {"points": "directions", "manifolds": "spheres in 4 dimensions"}
# Length of what of a unit decoder direction lies in a feature's subspace, from which on the feature is found.
MATCH = 0.8


@dataclass(frozen=True)
class Settings(grid.Settings):
    runs: Path = Path("runs/scaling_synthetic")
    sizes: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    k: int = 8
    tokens: int = 2_000_000


def runs_of(settings: Settings) -> dict[str, Config]:
    start = grid.base(settings)
    worlds = {name: with_fields(start, activations=f"synthetic:{name}") for name in WORLDS}
    return grid.with_rates(product(worlds, {"sae.n": settings.sizes, "sae.k": [settings.k]}), settings.lr)


def configs() -> dict[str, Config]:
    return runs_of(Settings())


def shares(decoder: np.ndarray, directions: np.ndarray, manifold: int) -> np.ndarray:
    """Length [n, F] of the part of each unit decoder row [n, d] in each feature's subspace, spanned by directions."""
    # [F * m, d], those of a feature beside each other.
    subspaces = directions.reshape(-1, manifold, directions.shape[1])
    orthonormal = np.linalg.qr(subspaces.transpose(0, 2, 1))[0]
    unit = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    return np.linalg.norm(np.einsum("nd,fdm->nfm", unit, orthonormal), axis=-1)


def counts(length: np.ndarray) -> dict[str, int]:
    """How many features are found, and how many latents the one with most of them has, from lengths [n, F]."""
    of = np.where(length.max(1) > MATCH, length.argmax(1), -1)
    latents = np.bincount(of[of >= 0], minlength=length.shape[1])
    return {"found": int((latents > 0).sum()), "most": int(latents.max())}


def measured(settings: Settings, rows: list[dict]) -> list[dict]:
    """Rows with the world, and what its features have of the latents."""
    out = []
    for row in rows:
        name = row["name"].split("-")[0]
        world = synthetic.WORLDS[name]
        decoder = np.asarray(jaxsae.load(settings.runs / row["name"]).W_dec)
        length = shares(decoder, synthetic.truth_of(world).directions, world.manifold)
        out.append(row | {"world": name} | counts(length))
    return out


def draw(rows: list[dict], found: dict, path: Path):
    picture, axes = figure(11, 4, 1, 3)
    columns = {"nmse": "NMSE", "found": "features found", "most": "latents of the feature with most"}
    for ax, (column, label) in zip(axes[0], columns.items()):
        for number, (world, title) in enumerate(WORLDS.items()):
            own = [row for row in grid.select(rows, world=world) if row[column]]
            fit = found[world].get(column)
            more = "" if fit is None or isinstance(fit, str) else f", n^{fit.params['b']:.2f}"
            style = {"color": f"C{number}", "marker": "os"[number], "label": title + more}
            ax.plot([row["n"] for row in own], [row[column] for row in own], **style)
        log_scale(ax.xaxis)
        ax.set_yscale("log")
        ax.set_xlabel("n")
        ax.set_ylabel(label)
        ax.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=110)


def claims(found: dict) -> list[Claim]:
    of = lambda world, column: grid.interval_of(found[world][column], "b")
    more = lambda column: grid.difference(of("manifolds", column), of("points", column))
    at = "Michaud et al. 2025"
    linear = {"above": 0, "size": 1.0}
    return grid.claims_of(
        ("Features that are points are found in proportion to n", at, "n^1", "exponent", of("points", "found"), linear),
        ("manifolds more slowly", at, "less", "exponent, minus that of points", more("found"), {"below": 0}),
        (
            "because latents go to the most frequent ones",
            at,
            "more",
            "exponent of the latents of one feature, minus that of points",
            more("most"),
            {"above": 0},
        ),
        (
            "The loss of manifolds falls more slowly",
            at,
            "less",
            "exponent of NMSE, minus that of points",
            more("nmse"),
            {"above": 0},
        ),
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = measured(settings, grid.train(settings, runs_of(settings)))
    law = lambda world, column: grid.try_fit(
        "power", [row for row in grid.select(rows, world=world) if row[column]], y=column
    )
    found = {world: {column: law(world, column) for column in ("nmse", "found", "most")} for world in WORLDS}
    facts = {world: {column: grid.entry(fit) for column, fit in laws.items()} for world, laws in found.items()}
    grid.finish("scaling_synthetic", settings, rows, facts, lambda path: draw(rows, found, path), claims(found))


if __name__ == "__main__":
    main()
