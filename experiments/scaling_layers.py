"""The loss against the number of latents at every layer and four places in it.

Claim (Gao et al. 2024, app. F.1, GPT-2 small): the normalised MSE of the residual stream rises with depth and drops at
the last layer; what attention and MLP add is hardest to reconstruct in the middle; the best rate varies by less than 2.

    python -m experiments.scaling_layers

Found here (one run of each size): the stream's NMSE rises with depth, at layer 4 to 2.3 (1.8 to 3.0) times layer 0's,
and does not drop at layer 5 (1.00, 0.95 to 1.05). Its exponent in n goes from -0.40 to -0.20. What attention adds gets
harder up to the last layer; what the MLP adds is hardest at layer 4. Of 512 latents and more at layer 0, 6 to 88 % are
dead.

Cost: about 35 minutes on 2 cores: 6 layers, 4 places, 4 sizes, 400,000 tokens each, all from one pass of the language
model. After a kill, the same command resumes. Every place has a power law of its own in n. Writes
OUT/scaling_layers.json, .csv and .png.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments import scaling_grid as grid
from experiments.grid import figure
from experiments.verdicts import Claim, interval_of_ratio
from jaxsae.config import Config
from jaxsae.sweep import product

PLACES = {
    "hook_attn_out": "attention's output",
    "hook_resid_mid": "stream after attention",
    "hook_mlp_out": "MLP's output",
    "hook_resid_post": "stream after the MLP",
}


@dataclass(frozen=True)
class Settings(grid.Settings):
    runs: Path = Path("runs/scaling_layers")
    layers: int = 6
    sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    k: int = 16
    tokens: int = 400_000
    eval_tokens: int = 32_768


def runs_of(settings: Settings, preset: str = "embedded") -> dict[str, Config]:
    layers = settings.layers if preset == "embedded" else 12
    hooks = [f"blocks.{layer}.{place}" for layer in range(layers) for place in PLACES]
    if preset == "embedded":
        start, sizes = grid.base(settings), settings.sizes
    else:
        start, sizes = next(iter(grid.grid(settings, preset).values())), (2048, 8192, 32768, 131072)
    # The hook is in the name without its dots.
    runs = {}
    for hook in hooks:
        of_hook = product(start, {"hook": [hook], "sae.n": sizes, "sae.k": [settings.k]})
        runs |= {f"{hook}-n={config.sae.n}": config for config in of_hook.values()}
    return grid.with_rates(runs, settings.lr)


def configs(preset: str = "embedded") -> dict[str, Config]:
    return runs_of(Settings(), preset)


def draw(settings: Settings, rows: list[dict], found: dict, path: Path):
    picture, axes = figure(10, 4.2, 1, 2)
    left, right = axes[0]
    layers, largest = range(settings.layers), max(settings.sizes)
    for number, (place, title) in enumerate(PLACES.items()):
        style = {"color": f"C{number}", "marker": "os^D"[number], "label": title}
        hooks = [f"blocks.{layer}.{place}" for layer in layers]
        left.plot(layers, [grid.select(rows, hook=hook, n=largest)[0]["nmse"] for hook in hooks], **style)
        known = [(layer, found[hook]) for layer, hook in zip(layers, hooks) if not isinstance(found[hook], str)]
        at = [layer + 0.08 * (number - 1.5) for layer, _ in known]
        b = [fit.params["b"] for _, fit in known]
        sides = [
            [value - fit.intervals["b"][0] for value, (_, fit) in zip(b, known)],
            [fit.intervals["b"][1] - value for value, (_, fit) in zip(b, known)],
        ]
        right.errorbar(at, b, sides, fmt="os^D"[number], color=f"C{number}", markersize=4, linewidth=0.8)
    left.set_ylabel(f"NMSE at n {largest}")
    right.set_ylabel("exponent in n, 95 % interval")
    for ax in (left, right):
        ax.set_xlabel("layer")
        ax.set_xticks(list(layers))
    left.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=110)


def claims(settings: Settings, rows: list[dict]) -> list[Claim]:
    """Ratios of the NMSE at two layers, over the sizes, which stand for seeds."""
    nmse = lambda place, layer: {row["n"]: row["nmse"] for row in grid.select(rows, hook=f"blocks.{layer}.{place}")}
    ratio = lambda a, b: interval_of_ratio([a[n] / b[n] for n in settings.sizes])
    last, at = settings.layers - 1, "Gao et al. 2024, app. F.1"
    stream = [nmse("hook_resid_post", layer) for layer in range(settings.layers)]
    asked = [
        (
            "The stream is harder to reconstruct with depth",
            at,
            "rises",
            f"NMSE at layer {last - 1}, of layer 0's",
            ratio(stream[last - 1], stream[0]),
            {"above": 1},
        ),
        (
            "and easier at the last layer",
            at,
            "drops",
            f"NMSE at layer {last}, of layer {last - 1}'s",
            ratio(stream[last], stream[last - 1]),
            {"below": 1},
        ),
    ]
    for place, what in (("hook_attn_out", "attention"), ("hook_mlp_out", "the MLP")):
        ends = [nmse(place, layer) for layer in (0, last)]
        harder = {n: max(end[n] for end in ends) for n in settings.sizes}
        asked.append(
            (
                f"What {what} adds is hardest in the middle",
                at,
                "middle",
                f"NMSE at layer {last // 2}, of the harder one of layers 0 and {last}",
                ratio(nmse(place, last // 2), harder),
                {"above": 1},
            )
        )
    return grid.claims_of(*asked)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    rows = grid.train(settings, runs_of(settings))
    found = {
        hook: grid.try_fit("power", grid.select(rows, hook=hook)) for hook in dict.fromkeys(r["hook"] for r in rows)
    }
    facts = {hook: grid.entry(fit) for hook, fit in found.items()}
    grid.finish(
        "scaling_layers", settings, rows, facts, lambda path: draw(settings, rows, found, path), claims(settings, rows)
    )


if __name__ == "__main__":
    main()
