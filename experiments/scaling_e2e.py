"""Does training end to end have the same exponents as training locally?

Claim: none is published. Braun et al. 2024 compare local, e2e and e2e + downstream at one size; here the KL divergence
of the language model's predictions is fitted against n at fixed k for all three.

    python -m experiments.scaling_e2e

Found here (one run of each size, 300,000 tokens): end to end gains less from more latents. The exponents of KL are
-0.26 (-0.40 to -0.12) local, -0.07 (-0.13 to -0.01) e2e, -0.13 (-0.22 to -0.04) e2e + downstream. The last has the
least KL up to 1536 latents, and local at 3072 (0.224 nats; e2e 0.323, e2e + downstream 0.230). Dead latents may be why:
local has none there, e2e 12 %, e2e + downstream 23 %.

Cost: about 25 minutes on 2 cores: 4 sizes of TopK autoencoders, 3 objectives, 300,000 tokens each. After a kill,
the same command resumes. The learning rate falls to 0, from a rate that goes as 1 / sqrt(n) for all objectives; AuxK is
on in local training only, as by default. Writes OUT/scaling_e2e.json, .csv and .png.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import e2e_topk
from experiments import scaling_grid as grid
from experiments.grid import LABELS
from experiments.verdicts import Claim
from jaxsae.config import Config, with_fields
from jaxsae.sweep import product

OBJECTIVES = tuple(LABELS)
METRICS = {"kl": "KL (nats)", "nmse": "NMSE", "delta_ce": "CE increase (nats)"}


@dataclass(frozen=True)
class Settings(grid.Settings):
    runs: Path = Path("runs/scaling_e2e")
    sizes: tuple[int, ...] = (384, 768, 1536, 3072)
    k: int = 16
    tokens: int = 300_000
    hook: str = "blocks.3.hook_resid_post"
    rate: float = 1e-2
    """Learning rate at 1536 latents, the better one of two in e2e_topk."""
    eval_tokens: int = 32_768


def runs_of(settings: Settings) -> dict[str, Config]:
    of_topk = e2e_topk.Settings(hook=settings.hook, tokens=settings.tokens, eval_tokens=settings.eval_tokens)
    starts = {o: e2e_topk.config(of_topk, settings.k, o, settings.rate) for o in OBJECTIVES}
    runs = product(starts, {"sae.n": settings.sizes})
    return {
        name: with_fields(c, lr=settings.rate * (1536 / c.sae.n) ** 0.5, auxk_after=None) for name, c in runs.items()
    }


def configs() -> dict[str, Config]:
    return runs_of(Settings())


def laws(rows: list[dict]) -> dict:
    """{metric: {objective: {law: fit}}}."""
    of = lambda metric, objective: {
        law: grid.try_fit(law, grid.select(rows, objective=objective), y=metric)
        for law in ("power", "power_irreducible")
    }
    return {metric: {objective: of(metric, objective) for objective in OBJECTIVES} for metric in METRICS}


def claims(found: dict) -> list[Claim]:
    slope = {objective: grid.interval_of(found["kl"][objective]["power"], "b") for objective in OBJECTIVES}
    measure = "exponent of KL in n, minus local's"
    return grid.claims_of(
        *(
            (f"More latents help {LABELS[o]} more than local", "asked here", "none", measure, more, {"below": 0})
            for o in OBJECTIVES[1:]
            for more in [grid.difference(slope[o], slope["local"])]
        )
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = grid.train(settings, runs_of(settings))
    found = laws(rows)
    facts = {
        metric: {o: {law: grid.entry(fit) for law, fit in both.items()} for o, both in by_objective.items()}
        for metric, by_objective in found.items()
    }
    lines = {LABELS[objective]: both["power"] for objective, both in found["kl"].items()}
    grid.finish(
        "scaling_e2e", settings, rows, facts, lambda path: grid.draw_fits(lines, path, METRICS["kl"]), claims(found)
    )


if __name__ == "__main__":
    main()
