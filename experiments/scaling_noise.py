"""The loss against the number of latents on activations without any structure.

Claim (Gao et al. 2024, app. G): on Gaussian noise of GPT-2's width the exponent of L(N) is about -0.04, on the
activations of GPT-2 small about -0.26: what is left at large n is unstructured, so the loss has an irreducible term.

    python -m experiments.scaling_noise

Found here (width 192, n 256 to 8192, k 32, 2 million tokens): -0.056 (-0.094 to -0.003) on noise, -0.263 (-0.320 to
-0.211) on the embedded model's activations.

Cost: about 10 minutes on 2 cores, and 15 more without the runs of scaling_nk at the same k, which are beside it in the
figure. After a kill, the same command resumes. The noise is made on the device, of the embedded model's width. Writes
OUT/scaling_noise.json, .csv and .png.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments import scaling_grid as grid
from experiments.verdicts import Claim
from jaxsae.config import Config, with_fields


@dataclass(frozen=True)
class Settings(grid.Settings):
    noise_runs: Path = Path("runs/scaling_noise")
    """Folder for the runs on noise; `runs` has those on activations."""
    k: int = 32


def on_noise(settings: Settings, preset: str = "embedded") -> dict[str, Config]:
    """The grid's runs at one k, on noise of the same width."""
    width = {"embedded": "gaussian", "gpt2-small": "gaussian-768"}[preset]
    runs = {name: config for name, config in grid.grid(settings, preset).items() if config.sae.k == settings.k}
    # The noise has no text: no language model is substituted into.
    changes = {"activations": f"synthetic:{width}", "hook": None}
    return {name: with_fields(config, **changes) for name, config in runs.items()}


def configs(preset: str = "embedded") -> dict[str, Config]:
    return on_noise(Settings(), preset)


def claims(found: dict) -> list[Claim]:
    noise, real = (grid.interval_of(found[what]["power"], "b") for what in ("noise", "activations"))
    more, at = grid.difference(noise, real), "Gao et al. 2024, app. G"
    return grid.claims_of(
        (
            "On noise the loss hardly falls with n",
            at,
            "-0.04",
            "exponent; hardly is above -0.1",
            noise,
            {"above": -0.1},
        ),
        (
            "far less than on activations",
            at,
            "-0.04 against -0.26",
            "exponent, minus that of activations",
            more,
            {"above": 0},
        ),
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = {
        "noise": grid.train(settings, on_noise(settings), settings.noise_runs),
        "activations": grid.train(settings, grid.grid(replace(settings, ks=(settings.k,)))),
    }
    found = {
        what: {law: grid.try_fit(law, own) for law in ("power", "power_irreducible")} for what, own in rows.items()
    }
    facts = {what: {law: grid.entry(fit) for law, fit in both.items()} for what, both in found.items()}
    table = [row | {"name": f"{what}/{row['name']}"} for what, own in rows.items() for row in own]
    # The paper's two exponents are those of the law without a floor.
    lines = {what: both["power"] for what, both in found.items()}
    grid.finish("scaling_noise", settings, table, facts, lambda path: grid.draw_fits(lines, path), claims(found))


if __name__ == "__main__":
    main()
