"""The least loss for an amount of compute, over autoencoders of all sizes.

Claim (Gao et al. 2024, sec. 3.1.1, fig. 1, GPT-4): L(C) = 0.09 + 0.056 C^-0.084, with C in units of the compute that
GPT-4 was pretrained with; the smallest models are off the trend.

    python -m experiments.scaling_compute

Found here (embedded model, k 16, eleven sizes, 2 million tokens): by FLOPs of six dense products L(C) = 0.041 + a
C^-0.32 (-0.34 to -0.30), with a floor of 0.034 to 0.045, 0.3 % off. The FLOPs of the sparse step have AuxK's products
with the share of dead latents that a run ends with, which jumps between sizes: there the floor is not identified.

Cost: about 10 minutes on 2 cores after scaling_nk, whose runs it reads, and 50 without them: at one k it trains sizes
between those of the grid too, because each size is one point of the frontier. After a kill, the same command resumes.
Compute is counted in both ways, which are not to be mixed: FLOPs of the sparse training step, and those of six dense
products. The loss is that of the training batches, of the weights without EMA. The k of the paper's figure is not
known. Writes OUT/scaling_compute.json, .csv and .png.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import scaling_grid as grid
from experiments.grid import figure
from experiments.verdicts import Claim
from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.run.fit import Fitted, fit
from jaxsae.scaling.fits.figure import draw_law, draw_residuals
from jaxsae.sweep import product

COUNTS = {"flops": "FLOPs of the sparse step", "flops_dense": "FLOPs of six dense products"}


@dataclass(frozen=True)
class Settings(grid.Settings):
    at: int = 16
    """The sparsity at which there are more sizes."""
    between: tuple[int, ...] = (362, 724, 1448, 2896, 5793)
    """Sizes besides those of the grid."""


def more(settings: Settings) -> dict[str, Config]:
    """The runs that the grid does not have."""
    runs = product(grid.waiting(grid.base(settings)), {"sae.n": settings.between, "sae.k": [settings.at]})
    return grid.with_rates(runs, settings.lr)


def configs(preset: str = "embedded") -> dict[str, Config]:
    settings = Settings()
    return grid.grid(settings, preset) | (more(settings) if preset == "embedded" else {})


def frontiers(runs: dict[str, Config], folder: Path, ks: tuple[int, ...]) -> dict[int, dict[str, Fitted | str]]:
    """{k: {count of compute: frontier, or why there is none}} of the logs of runs."""

    def of(k: int, count: str) -> Fitted | str:
        try:
            return fit(
                [str(folder / name) for name, c in runs.items() if c.sae.k == k], "frontier", (count,), "nmse", ()
            )
        except BadInput as error:
            return str(error)

    return {k: {count: of(k, count) for count in COUNTS} for k in ks}


def draw(found: dict[str, Fitted | str], path: Path):
    picture, axes = figure(10, 8, 2, 2)
    for row, (count, title) in zip(axes, COUNTS.items()):
        if isinstance(found[count], str):
            continue
        draw_law(row[0], found[count].fit, "NMSE (batch)", found[count].frontier)
        draw_residuals(row[1], found[count].fit)
        for ax in row:
            ax.set_xlabel(title)
    picture.savefig(path, dpi=110)


def claims(found: dict[str, Fitted | str]) -> list[Claim]:
    at = "Gao et al. 2024, sec. 3.1.1"
    of = lambda count, name: None if isinstance(found[count], str) else grid.interval_of(found[count].fit, name)
    asked = []
    for count, title in COUNTS.items():
        asked += [
            (
                f"The least loss falls as a power of compute ({title})",
                at,
                "-0.084",
                "exponent",
                of(count, "b"),
                {"below": 0},
            ),
            (f"above an irreducible part ({title})", at, "0.09", "floor of NMSE", of(count, "e"), {"above": 0}),
        ]
    return grid.claims_of(*asked)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    runs = grid.grid(settings) | more(settings)
    rows = grid.train(settings, runs)
    found = frontiers(runs, settings.runs, settings.ks)
    value = lambda f: grid.entry(f if isinstance(f, str) else f.fit)
    facts = {f"k {k}": {count: value(f) for count, f in both.items()} for k, both in found.items()}
    grid.finish(
        "scaling_compute",
        settings,
        rows,
        facts,
        lambda path: draw(found[settings.at], path),
        claims(found[settings.at]),
    )


if __name__ == "__main__":
    main()
