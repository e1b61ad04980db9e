"""How well does an autoencoder that was trained on short contexts serve longer ones?

Claim (Gao et al. 2024, sec. 2.1 and app. F.2): all autoencoders there are trained on contexts of 64 tokens, which the
authors call a limitation; later positions are harder to reconstruct, and the first one is much easier. Users report
that the published ones do not serve longer text.

    python -m experiments.context

Found here (n 2048, k 16, 1.5 million tokens, one seed): trained on contexts of 64, the NMSE is 0.087 at the positions
that training had and 0.122 at later ones, up to 0.19 at the last; trained on 128 it is 0.091 at both.

Cost: about 8 minutes on 2 cores: one autoencoder trained on contexts of 64 tokens and one on contexts of 128, all that
the embedded model reads, each on the same number of tokens; both evaluated at every position of 128. After a kill, the
same command resumes. Writes OUT/context.json and OUT/context.png.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments import scaling_grid as grid
from experiments.grid import figure
from experiments.verdicts import Claim, interval
from jaxsae import evals
from jaxsae.config import Config, with_fields
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.evaluate import evaluate
from jaxsae.sweep import product

MEASURED = {"nmse": "NMSE", "delta_ce": "CE increase (nats)"}


@dataclass(frozen=True)
class Settings(grid.Settings):
    runs: Path = Path("runs/context")
    contexts: tuple[int, ...] = (64, 128)
    """Tokens of a context in training; the last one is evaluated."""
    n: int = 2048
    k: int = 16
    tokens: int = 1_500_000
    measured: int = 262_144
    """Tokens that both are evaluated on."""


def runs_of(settings: Settings) -> dict[str, Config]:
    start = with_fields(grid.waiting(grid.base(settings)), **{"sae.n": settings.n, "sae.k": settings.k})
    return product(start, {"context": settings.contexts})


def configs() -> dict[str, Config]:
    return runs_of(Settings())


def by_position(folder: Path, context: int, tokens: int) -> dict[str, list[float]]:
    """{metric: its value at each position} of a run on held-out contexts."""
    on = EvalConfig(context=context, tokens=tokens)
    result = evaluate(folder, on, ("standard",), evals.EvaluationConfigs(), folder / f"context{context}")
    return {name: result[f"{name}_by_position"] for name in MEASURED}


def compared(found: dict[int, dict[str, list[float]]], short: int) -> dict:
    """Means over positions that the short contexts have, first position left out, and over those that they do not."""
    parts = {f"positions 1 to {short - 1}": slice(1, short), f"positions {short} and later": slice(short, None)}
    # At the last position nothing is predicted.
    mean = lambda values: float(np.mean([v for v in values if v is not None]))
    return {
        title: {metric: {str(c): mean(found[c][metric][part]) for c in found} for metric in MEASURED}
        for title, part in parts.items()
    }


def draw(found: dict[int, dict[str, list[float]]], short: int, path: Path):
    picture, axes = figure(10, 4, 1, 2)
    for ax, (metric, label) in zip(axes[0], MEASURED.items()):
        for number, (context, values) in enumerate(found.items()):
            style = {"color": f"C{number}", "linewidth": 1.2, "label": f"trained on contexts of {context}"}
            ax.plot([np.nan if v is None else v for v in values[metric]], **style)
        ax.axvline(short - 0.5, color="0.6", linestyle=":")
        ax.set_xlabel("position")
        ax.set_ylabel(label)
    axes[0, 0].legend(frameon=False)
    picture.savefig(path, dpi=110)


def claims(found: dict, short: int) -> list[Claim]:
    early, late = compared(found, short).values()
    at, one = "Gao et al. 2024, app. F.2", lambda value: interval([value])
    trained = str(short)
    (longer,) = {str(context) for context in found} - {trained}
    ratio = lambda metric, part, a, b: one(part[metric][a] / part[metric][b])
    later = one(late["nmse"][trained] / early["nmse"][trained])
    return grid.claims_of(
        (
            "Later positions are harder to reconstruct",
            at,
            "harder",
            f"NMSE from position {short} on, of that before; trained on {short}",
            later,
            {"above": 1},
        ),
        *(
            (
                f"Trained on contexts of {short}, later positions lose by it ({label})",
                "asked here",
                "none",
                f"{label} from position {short} on, of that of training on {longer}",
                ratio(metric, late, trained, longer),
                {"above": 1},
            )
            for metric, label in MEASURED.items()
        ),
    )


def main():
    settings = tyro.cli(Settings, description=__doc__)
    runs = runs_of(settings)
    rows = grid.train(settings, runs)
    longest = settings.contexts[-1]
    found = {
        config.data.context: by_position(settings.runs / name, longest, settings.measured)
        for name, config in runs.items()
    }
    short = settings.contexts[0]
    table = [row | {"context": runs[row["name"]].data.context} for row in rows]
    facts = {**compared(found, short), "by position": {str(c): values for c, values in found.items()}}
    for title, values in compared(found, short).items():
        print(title, values)
    grid.finish("context", settings, table, facts, lambda path: draw(found, short, path), claims(found, short))


if __name__ == "__main__":
    main()
