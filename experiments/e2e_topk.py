"""TopK autoencoders trained end to end and locally: the loss of the language model at equal k.

Claim (Braun et al. 2024, sec. 3.1, for ReLU autoencoders): at an equal number of active features, training end to end
costs the language model less than half the cross-entropy that local training does.

Found here (embedded language model, one seed): it depends on the start, and on what is summed. From random weights,
half a million tokens on the KL alone are better than as many locally at k 4 (CE +0.48 instead of +0.64) and 8 (+0.33,
+0.36), and worse at 16 (+0.25, +0.21) and 32 (+0.18, +0.13). With the reconstruction error of their own place beside
the KL they are better than both at every k: +0.46, +0.28, +0.17, +0.12, at a squared error 2 to 14 % above local's.
From the local autoencoder, half as many tokens again end to end are better at every k than as many locally: +0.42
instead of +0.58, +0.24 (+0.33), +0.15 (+0.20), +0.10 (+0.12). Nowhere is it less than half. AuxK is on in local
training from random weights only. The larger learning rate was the better one each time. Of more tokens there are
single runs, not among the results (1.5 million, without AuxK): the KL alone +0.167 at k 16, where local is +0.180
(+0.177 with AuxK), and +0.115 at k 32, where local is +0.102: it needs more tokens than local training, the more so the
larger k.

    python -m experiments.e2e_topk

Cost: about thirty-five minutes on 2 cores: for each k, autoencoders of the embedded language model trained locally, end
to end, and end to end with the reconstruction error beside, from random weights, on the same tokens, the best of two
learning rates each; and the best local one trained on, end to end or, as a control, locally, on half as many tokens
again. After a kill, the same command resumes. Writes OUT/e2e_topk.json and OUT/e2e_topk.png.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from experiments.grid import RESULTS, STYLES, figure, keep, log_scale, plain, train_all
from jaxsae.config import Config, with_fields
from jaxsae.presets import preset
from jaxsae.sae.config import SAEConfig

OBJECTIVES = ("local", "e2e")
# KL and the reconstruction error of the autoencoder's own place.
BOTH = "e2e_reconstruction"


@dataclass(frozen=True)
class Settings:
    runs: Path = Path("runs/e2e_topk")
    out: Path = RESULTS
    ks: tuple[int, ...] = (4, 8, 16, 32)
    n: int = 1536
    hook: str = "blocks.3.hook_resid_post"
    tokens: int = 500_000
    """From random weights."""
    lrs: tuple[float, ...] = (4e-3, 1e-2)
    reconstruction_coef: float = 10.0
    """Weight of the reconstruction error beside the KL, where there is one."""
    more: int = 250_000
    """From the best local autoencoder."""
    more_lr: float = 3e-3
    eval_tokens: int = 32_768
    workers: int = 2


def config(settings: Settings, k: int, objective: str, lr: float, **training) -> Config:
    """A TopK autoencoder whose learning rate falls to 0; `objective` is one of OBJECTIVES, or BOTH."""
    if objective == BOTH:
        objective, training = "e2e", training | {"e2e.reconstruction_coef": settings.reconstruction_coef}
    numbers = {
        "objective": objective,
        "hook": settings.hook,
        "tokens": settings.tokens,
        "batch_size": 1024,
        "lr": lr,
        "schedule": "linear",
        "warmup": settings.tokens // 20,
        "lr_end": 0.0,
        "grad_clip": None,
        "ema": None,
        "mse_scale": "variance",
        # The default when the results were made.
        "auxk_after": settings.tokens // 5,
        "seed": 0,
        "checkpoint_every": 10**6,
        "eval_tokens": settings.eval_tokens,
    }
    base = replace(preset("braun-embedded-local"), sae=SAEConfig(settings.n, k))
    return with_fields(base, **numbers | training)


def further(settings: Settings, k: int, objective: str, start: str) -> Config:
    """The local autoencoder of that run, trained on, on other contexts than those at the start of its own training."""
    more = {"init_from": str(settings.runs / start), "tokens": settings.more, "warmup": 0, "seed": 1, "auxk_coef": 0.0}
    return config(settings, k, objective, settings.more_lr, **more)


def draw(facts: dict, path: Path):
    lines = {
        "local": (STYLES["local"], "local"),
        "e2e": (STYLES["e2e"], "e2e, from random weights"),
        BOTH: (STYLES["e2e_downstream"], "e2e + reconstruction, from random weights"),
        "local, then local": (STYLES["local"] | {"linestyle": ":", "fillstyle": "none"}, "local, then local"),
        "local, then e2e": (STYLES["e2e"] | {"linestyle": ":", "fillstyle": "none"}, "local, then e2e"),
    }
    picture, axes = figure(6, 4)
    ax = axes[0, 0]
    for name, (style, label) in lines.items():
        rows = [facts["best"][k][name] for k in facts["best"]]
        ax.plot([row["l0"] for row in rows], [row["delta_ce"] for row in rows], label=label, **style)
    log_scale(ax.xaxis)
    log_scale(ax.yaxis)
    ax.set_xticks([int(k) for k in facts["best"]])
    ax.set_xlabel("L0")
    ax.set_ylabel("CE increase (nats)")
    ax.legend(frameon=False)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    points = [(k, objective, lr) for k in settings.ks for objective in (*OBJECTIVES, BOTH) for lr in settings.lrs]
    name = lambda k, objective, lr: f"{objective}-k{k}-lr{lr:g}"
    configs = {name(*point): config(settings, *point) for point in points}
    first = train_all(configs, settings.runs, settings.workers)
    columns = ("l0", "delta_ce", "kl", "nmse", "dead_fraction")
    pick = lambda summary: {column: summary[column] for column in columns}
    rows = [{"k": k, "objective": o, "lr": lr, **pick(first[name(k, o, lr)])} for k, o, lr in points]
    best = lambda k, objective: min(
        (row for row in rows if (row["k"], row["objective"]) == (k, objective)), key=lambda row: row["delta_ce"]
    )
    starts = {k: name(k, "local", best(k, "local")["lr"]) for k in settings.ks}
    second = {f"{start}-then-{o}": further(settings, k, o, start) for k, start in starts.items() for o in OBJECTIVES}
    then = train_all(second, settings.runs, settings.workers)
    facts = {"settings": plain(settings), "rows": rows, "best": {}}
    for k, start in starts.items():
        found = {objective: best(k, objective) for objective in (*OBJECTIVES, BOTH)}
        found |= {f"local, then {o}": pick(then[f"{start}-then-{o}"]) for o in OBJECTIVES}
        facts["best"][str(k)] = found
        print(f"k {k}: " + "; ".join(f"{title} CE +{row['delta_ce']:.3f}" for title, row in found.items()))
    path = keep("e2e_topk", facts, settings.out)
    draw(facts, path.with_suffix(".png"))
    print(f"{path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
