"""The loss against the number of latents on language models of different size.

Claim (Gao et al. 2024, sec. 3.1.4, fig. 4): at k = 32, larger language models need more latents for the same loss, and
the exponent in n is worse.

    python -m experiments.scaling_subject --novels novels.tar.xz

Found here (widths 96, 144 and 192, one run of each size): the larger the model, the larger the loss at equal n (0.037,
0.053 and 0.060 at n 1024). Exponents are -0.10 (-0.12 to -0.09), -0.13 (-0.16 to -0.11) and -0.12 (-0.17 to -0.08), too
close to say whether they get worse; no irreducible part is identified.

Cost: about 50 minutes on 2 cores, 35 of them for the language models: three of different width are trained as the
embedded one was (experiments/pretrain_embedded_lm.py), but on fewer tokens, and autoencoders of 5 sizes on each. After
a kill, the same command resumes. Writes OUT/scaling_subject.json, .csv and .png.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import pretrain_embedded_lm
from experiments import scaling_grid as grid
from experiments.verdicts import Claim
from jaxsae.config import Config, with_fields
from jaxsae.errors import BadInput
from jaxsae.sweep import product


@dataclass(frozen=True)
class Settings(grid.Settings):
    novels: str | None = None
    """Archive of novels that language models are trained on, for those that are not there yet."""
    runs: Path = Path("runs/scaling_subject")
    widths: tuple[int, ...] = (96, 144, 192)
    lm_tokens: int = 3_000_000
    sizes: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    k: int = 32
    tokens: int = 1_000_000


def model(settings: Settings, width: int) -> Path:
    return settings.runs / f"lm{width}"


def train_models(settings: Settings):
    """Train the language models that are not there, or not finished."""
    for width in settings.widths:
        out = model(settings, width)
        if (out / "model" / "model.safetensors").exists():
            continue
        if settings.novels is None:
            raise BadInput(f"{out} has no language model yet: give --novels, an archive of texts to train it on")
        config = pretrain_embedded_lm.Config(
            settings.novels, str(out), out.exists(), settings.lm_tokens, n_embd=width, n_head=width // 48
        )
        pretrain_embedded_lm.main(config)


def runs_of(settings: Settings) -> dict[str, Config]:
    start = grid.base(settings)
    of_models = {f"lm{w}": with_fields(start, lm=str(model(settings, w) / "model")) for w in settings.widths}
    return grid.with_rates(product(of_models, {"sae.n": settings.sizes, "sae.k": [settings.k]}), settings.lr)


def configs() -> dict[str, Config]:
    return runs_of(Settings())


def claims(settings: Settings, found: dict) -> list[Claim]:
    small, large = (found[f"width {w}"]["power"] for w in (min(settings.widths), max(settings.widths)))
    slope = grid.difference(grid.interval_of(large, "b"), grid.interval_of(small, "b"))
    at, measure = "Gao et al. 2024, sec. 3.1.4", "exponent without a floor, largest model minus smallest"
    return grid.claims_of(
        ("For larger language models the exponent is worse", at, "worse", measure, slope, {"above": 0})
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    train_models(settings)
    rows = [row | {"width": int(row["name"].split("-")[0][2:])} for row in grid.train(settings, runs_of(settings))]
    found = {
        f"width {w}": {law: grid.try_fit(law, grid.select(rows, width=w)) for law in ("power_irreducible", "power")}
        for w in settings.widths
    }
    facts = {title: {law: grid.entry(fit) for law, fit in both.items()} for title, both in found.items()}
    lines = {title: both["power_irreducible"] for title, both in found.items()}
    grid.finish(
        "scaling_subject", settings, rows, facts, lambda path: grid.draw_fits(lines, path), claims(settings, found)
    )


if __name__ == "__main__":
    main()
