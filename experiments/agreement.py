"""Is subject-verb agreement kept when an autoencoder stands in the language model, and by how few latents?

Claim (Braun et al. 2024, app. I): no type of training is consistently more faithful; end-to-end autoencoders need
comparatively few latents, local and e2e + downstream ones are alike. (Faithfulness: the mean logit difference of the
right and the wrong verb form with the autoencoder in place, over that of the model itself.)

Found here (a GPT-2 of 3 million parameters trained on TinyStories, autoencoders before its block 4, one seed): no. On
both templates that the model knows e2e is closer to it than local: at similar CE increase (0.28 to 0.30 nats) 101 %
(simple) and 105 % (within_rc), against 79 % and 88 % for local, 80 % and 95 % for e2e + downstream; at similar L0 (72
to 88) 108 % and 107 %, against 79 % and 88 %, 98 % and 101 %. That e2e needs comparatively few latents holds: at
similar L0, for 75 % of the model's own difference (first 100 rows) it needs its 20 (simple) and 25 (within_rc) most
important ones, and e2e + downstream 25 and 30. Local needs 60 and 45, so it is not like e2e + downstream; for 80 %,
which takes the others 25 to 40, it needs 175 on within_rc, and on simple all of its latents do not reach that. End to
end the same loss takes fewer active latents, too: 77 for local, 53 for e2e, 26 for e2e + downstream. With local,
though, the right form wins most often at similar CE increase: in 95 % and 95 % of the rows, 91 % and 92 % with e2e, 85
% and 91 % with e2e + downstream; a mean like the model's may hide differences too large and too small. The model does
not know nounpp (right on 53 %).

    python -m experiments.agreement --lm MODEL --text STORIES.txt --pairs FOLDER

MODEL is a folder or hub name of a model that knows agreement (a GPT-2 or GPT-Neo trained on TinyStories, say), STORIES
text of its kind, FOLDER holds simple_train.json, nounpp_train.json and within_rc_train.json (JSON lines, as in the
feature-circuits repository of Marks et al. 2024). Cost: about a quarter of an hour on 2 cores; the same command resumes
after a kill. Writes OUT/agreement.json and OUT/agreement.png.

Templates on which the model itself is right less often than MIN_ACCURACY are measured and reported, but no conclusion
is drawn from them: if the model's mean difference is near 0, a share of it is noise.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

from experiments import e2e_pareto as pareto
from experiments.grid import LABELS, STYLES, facts_of, figure, keep, plain, relu, train_all
from jaxsae import interop
from jaxsae.config import Config, with_fields
from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals.agreement import accuracy, differences, faithfulness
from jaxsae.evals.pairs import read, tokenise
from jaxsae.evals.topk_curve import topk_curve
from jaxsae.lm import load, load_tokenizer, process_weights

TEMPLATES = ("simple", "within_rc", "nounpp")
MIN_ACCURACY = 0.75
# Shares of the model's own difference, to be reached and kept.
LEVELS = (0.75, 0.8)
KS = (*range(20), *range(20, 100, 5), *range(100, 500, 25))


@dataclass(frozen=True)
class Settings:
    lm: str
    """A model that knows agreement: a folder in Hugging Face format, or a hub name."""
    text: str
    """Text to train on."""
    pairs: Path
    """Folder of the agreement pairs."""
    runs: Path = Path("runs/agreement")
    out: Path = pareto.RESULTS
    hook: str = "blocks.4.hook_resid_pre"
    n: int = 1024
    tokens: int = 300_000
    lr: float = 4e-3
    downstream_coef: float = 1000.0
    """As in the paper's runs on TinyStories."""
    local: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Sparsity coefficients of each type."""
    e2e: tuple[float, ...] = (1.0, 4.0, 16.0)
    e2e_downstream: tuple[float, ...] = (100.0, 300.0, 900.0)
    examples: int = 1000
    """Rows of each template."""
    curve_examples: int = 100
    """Rows of each template for the curves."""
    workers: int = 2


def config(settings: Settings, kind: str, sparsity: float) -> Config:
    hook, coef = settings.hook, settings.downstream_coef
    made = relu(kind, hook, settings.n, settings.tokens, settings.lr, sparsity, coef)
    return with_fields(made, lm=settings.lm, text=(settings.text,), eval_tokens=16_384)


def rows_of(settings: Settings, points: list[tuple[str, float]]) -> list[dict]:
    configs = {f"{kind}-{sparsity:g}": config(settings, kind, sparsity) for kind, sparsity in points}
    summaries = train_all(configs, settings.runs, settings.workers)
    rows = []
    for (run, summary), (kind, sparsity) in zip(summaries.items(), points):
        point = {"run": run, "layer": 0, "type": kind, "sparsity": sparsity, "seed": 0}
        rows.append(point | facts_of(configs[run], summary))
    return rows


def enough(curve, level: float) -> int | None:
    """The fewest latents with which, and with any more of which, faithfulness is at least `level`."""
    below = [i for i, f in enumerate(curve.faithfulness) if f < level]
    first = below[-1] + 1 if below else 0
    return int(curve.ks[first]) if first < len(curve.ks) else None


def draw(facts: dict, path: Path):
    picture, axes = figure(12, 4, 1, len(TEMPLATES))
    for ax, template in zip(axes[0], TEMPLATES):
        for kind, curve in facts["curves"][template].items():
            style = {key: value for key, value in STYLES[kind].items() if key != "marker"}
            ax.plot(curve["k"], curve["faithfulness"], linewidth=1.6, label=LABELS[kind], **style)
        right = facts["model"][template]["accuracy"]
        known = "" if right >= MIN_ACCURACY else ": not known to it"
        ax.set_title(f"{template}\nthe model is right on {right:.0%}{known}", fontsize=10)
        ax.set_xscale("symlog", linthresh=10)
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.set_xlabel("latents that are not ablated")
        ax.axhline(1, color="0.6", linewidth=0.8)
        ax.set_ylim(max(-0.5, ax.get_ylim()[0]), min(2, ax.get_ylim()[1]))
    axes[0, 0].set_ylabel("faithfulness")
    axes[0, 0].legend(frameon=False)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    with jax.set_mesh(mesh := make_mesh(1, 1)):
        measure(settings, mesh)


def measure(settings: Settings, mesh: jax.sharding.Mesh):
    files = {template: settings.pairs / f"{template}_train.json" for template in TEMPLATES}
    rows_read = {template: read(path, settings.examples) for template, path in files.items()}
    lm = process_weights(load(settings.lm))
    tokenizer = load_tokenizer(lm)
    pairs, dropped = {}, {}
    for template, some in rows_read.items():
        pairs[template], dropped[template] = tokenise(some, tokenizer)
    rows = rows_of(settings, [(kind, s) for kind in pareto.TYPES for s in getattr(settings, kind)])
    rows += rows_of(settings, list(pareto.matched(rows).items()))
    measured = {template: differences(lm, pairs[template]) for template in TEMPLATES}
    facts = {
        "settings": plain(settings),
        "rows": rows,
        "model": {
            template: {"m": float(d.mean()), "accuracy": accuracy(d), "rows": len(d), "dropped": dropped[template]}
            for template, d in measured.items()
        },
        "faithfulness": {},
    }
    for title in ("similar CE increase", "similar L0"):
        chosen = pareto.triple(rows, pareto.MATCHED[title])
        table = {"spread": chosen["spread"]}
        for kind in pareto.TYPES:
            run = next(r for r in rows if r["type"] == kind and r["sparsity"] == chosen[kind]["sparsity"])
            sae = interop.load(settings.runs / run["run"], mesh)
            values = {template: faithfulness(lm, sae, settings.hook, pairs[template]) for template in TEMPLATES}
            table[kind] = {"run": run, **values}
            said = ", ".join(f"{template} {v['faithfulness']:.1%}" for template, v in values.items())
            print(f"{title}: {LABELS[kind]:<17} L0 {run['l0']:.0f}, CE +{run['delta_ce']:.3f}: {said}", flush=True)
        facts["faithfulness"][title] = table
    facts["curves"] = {template: {} for template in TEMPLATES}
    for template in TEMPLATES:
        some, _ = tokenise(rows_read[template][: settings.curve_examples], tokenizer)
        for kind in pareto.TYPES:
            run = facts["faithfulness"]["similar L0"][kind]["run"]
            curve = topk_curve(lm, interop.load(settings.runs / run["run"], mesh), settings.hook, some, KS)
            needed = {f"latents for {level:.0%} of the model's": enough(curve, level) for level in LEVELS}
            facts["curves"][template][kind] = {
                "k": [int(k) for k in curve.ks],
                "faithfulness": [round(float(f), 4) for f in curve.faithfulness],
                "active": len(curve.latents),
                **needed,
            }
            print(f"{template}: {LABELS[kind]}: {needed} of {len(curve.latents)}", flush=True)
    path = keep("agreement", facts, settings.out)
    draw(facts, path.with_suffix(".png"))
    print(f"{path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
