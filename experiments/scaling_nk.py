"""The loss of a converged autoencoder against its number of latents and its sparsity, as one law.

Claim (Gao et al. 2024, sec. 3.1.3, GPT-4): L(n, k) = exp(alpha + beta_k log k + beta_n log n + gamma log k log n) +
exp(zeta + eta log k) with alpha -0.50, beta_k 0.26, beta_n -0.017, gamma -0.042, zeta -1.32, eta -0.085: the larger k,
the steeper the law in n (gamma < 0) and the lower its irreducible term (eta < 0).

    python -m experiments.scaling_nk

Found here (embedded model, n 256 to 8192, k 4 to 32, 2 million tokens): gamma 0.08 (0.02 to 0.15), so with larger k the
law is less steep, against the paper; eta -0.67 (-0.75 to -0.59), so the irreducible part falls with k, much faster than
in GPT-4. The law is 2.1 % off. At 2 million tokens the largest sizes have not converged.

Cost: about 40 minutes on 2 cores for 6 sizes by 4 sparsities, which scaling_n, scaling_compute and scaling_tokens read
too. After a kill, the same command resumes. Writes OUT/scaling_nk.json, .csv (for `jaxsae fit`) and .png.
"""

import tyro

from experiments import scaling_grid as grid
from experiments.scaling_grid import Settings
from experiments.verdicts import Claim
from jaxsae.config import Config
from jaxsae.scaling.fits import Fit, figure


def configs(preset: str = "embedded") -> dict[str, Config]:
    return grid.grid(Settings(), preset)


def claims(joint: Fit) -> list[Claim]:
    at = "Gao et al. 2024, sec. 3.1.3"
    return grid.claims_of(
        (
            "A larger k makes the law in n steeper",
            at,
            "-0.042",
            "gamma",
            grid.interval_of(joint, "gamma"),
            {"below": 0},
        ),
        ("and its irreducible part smaller", at, "-0.085", "eta", grid.interval_of(joint, "eta"), {"below": 0}),
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = grid.train(settings, grid.grid(settings))
    joint = grid.fitted("joint", rows, ("n", "k"))
    # Where k comes close to the width the law bends: how far do the sparser runs alone agree?
    sparser = grid.try_fit("joint", [row for row in rows if row["k"] < max(settings.ks)], ("n", "k"))
    facts = {"all": grid.entry(joint), f"k below {max(settings.ks)}": grid.entry(sparser)}
    grid.finish("scaling_nk", settings, rows, facts, lambda path: figure.draw(joint, path, "NMSE"), claims(joint))


if __name__ == "__main__":
    main()
