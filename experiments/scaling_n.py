"""The loss of a converged autoencoder against its number of latents.

Claim (Gao et al. 2024, sec. 3.1.2 and app. G): at fixed k the normalised MSE is a power law in n with an irreducible
term, without which it fits clearly worse; on GPT-2 small the exponent of the fit without one is about -0.26.

    python -m experiments.scaling_n

Found here (embedded model, n 256 to 8192, 2 million tokens): all three k have an irreducible part, 0.133 (0.113 to
0.144) at k 4, 0.082 (0.066 to 0.092) at k 8, 0.036 (0.026 to 0.043) at k 32; without one the law is 4 to 6 % off
instead of 1 %, and its exponents are -0.19, -0.24 and -0.26.

Cost: about 40 minutes on 2 cores, or none after scaling_nk, whose runs it reads. After a kill, the same command
resumes. Fits the power law with the irreducible term at each k, says whether the sizes tell them apart by predicting
each size from the others, and writes OUT/scaling_n.json, .csv and .png.
"""

from dataclasses import dataclass

import tyro

from experiments import scaling_grid as grid
from experiments.verdicts import Claim
from jaxsae.config import Config

SOURCE = "Gao et al. 2024, app. G"
FALLS = {"below": 0, "size": -0.26, "needs": "a language model whose activations are less regular"}


@dataclass(frozen=True)
class Settings(grid.Settings):
    at: tuple[int, ...] = (4, 8, 32)
    """The sparsities that are fitted."""


def configs(preset: str = "embedded") -> dict[str, Config]:
    return grid.grid(Settings(), preset)


def laws(settings: Settings, rows: list[dict]) -> dict:
    """{title: fit} of both laws at each k."""
    return {
        f"k {k}": {law: grid.try_fit(law, grid.select(rows, k=k)) for law in ("power_irreducible", "power")}
        for k in settings.at
    }


def claims(found: dict) -> list[Claim]:
    """Of each k that was fitted."""
    asked = []
    for title, both in found.items():
        floor, slope = grid.interval_of(both["power_irreducible"], "e"), grid.interval_of(both["power"], "b")
        asked += [
            (f"The loss has an irreducible part ({title})", SOURCE, "yes", "floor of NMSE", floor, {"above": 0}),
            (f"The loss falls as a power of n ({title})", SOURCE, "n^-0.26", "exponent without a floor", slope, FALLS),
        ]
    return grid.claims_of(*asked)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = [row for row in grid.train(settings, grid.grid(settings)) if row["k"] in settings.at]
    found = laws(settings, rows)
    facts = {title: {law: grid.entry(fit) for law, fit in both.items()} for title, both in found.items()}
    lines = {title: both["power_irreducible"] for title, both in found.items()}
    grid.finish("scaling_n", settings, rows, facts, lambda path: grid.draw_fits(lines, path), claims(found))


if __name__ == "__main__":
    main()
