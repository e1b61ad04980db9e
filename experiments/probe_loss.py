"""How well does one latent answer a yes-or-no question about a text? Probe loss through training, against n and k.

Claim (Gao et al. 2024, sec. 4.2, fig. 5 and 32): the probe loss falls through training although nothing asks for it,
and with n; against k it rises and then falls; TopK is better than ReLU, and both are much better than the channels of
the stream (GPT-2 small: 0.49 to 0.52 nats; in GPT-4 the channels have 0.600).

    python -m experiments.probe_loss --probes FOLDER

FOLDER holds the tasks, as for `jaxsae eval --probes.folder`.

Found here (embedded language model, 61 tasks on prose and names, none on code; three seeds): it falls through training
(0.672 to 0.662 nats), and that is all that three seeds settle. It is 0.656 at n 2048 and 0.663 at n 256, 0.656 at k 8
and 0.670 at k 128, without a fall at the end; TopK and ReLU are alike, and both 0.007 below the best channel (0.669).
Guessing has 0.695: a model of 3 million parameters that read Python source has few features that these tasks ask for.

Cost: three minutes on 2 cores, after topk_vs_baselines, whose runs it uses. Writes OUT/probe_loss.json and
OUT/probe_loss.png.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments import quality
from experiments.grid import figure, in_processes, log_scale
from experiments.quality import CHECKPOINTS, EMBEDDED, WORLDS, Run, at_l0, folder
from experiments.verdicts import Claim, interval
from jaxsae import interop
from jaxsae.evals.probes import linear
from jaxsae.evals.probes.best import best_channel, best_latent, preactivations
from jaxsae.evals.probes.tasks import read_folder
from jaxsae.evals.probes.texts import last_activations, token_ids
from jaxsae.run.saved import config_of, export_of, restore

SOURCE = "Gao et al. 2024, sec. 4.2"
CONTEXT = 64


@dataclass(frozen=True)
class Settings(quality.Settings):
    probes: Path = Path("probes")
    """Folder of the tasks: .jsonl or .jsonl.gz files, each line with task, text, label and split."""
    texts: int = 200
    """Of each task to fit to, and as many to score."""
    ks: tuple[int, ...] = (8, 16, 32, 64, 128)
    ns: tuple[int, ...] = (256, 1024, 2048)
    shares: tuple[int, ...] = (1, 2, 4, 8)
    """Eighths of training after which TopK is measured."""


def activations(settings: Settings, run: Path, path: Path):
    """Keep the activations at the last tokens of all tasks' texts; `run` is any run of the embedded model."""
    subject = quality.open_world(run, EMBEDDED, settings.eval_tokens)
    tasks = [task.limited(settings.texts) for task in read_folder(settings.probes)]
    ids = token_ids(subject.tokenizer(), [text for task in tasks for text in task.texts], CONTEXT)
    x, kept = last_activations(subject, ids)
    number = np.repeat(np.arange(len(tasks)), [len(task.texts) for task in tasks])
    labels, train = (np.concatenate([getattr(task, name) for task in tasks]) for name in ("labels", "train"))
    np.savez(path, x=x[kept], task=number[kept], labels=labels[kept], train=train[kept])


@cache
def _loaded(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def losses(path: Path, of_task) -> list[float]:
    """The mean test loss of each task; of_task(x, y, x_test) gives the logits of its test texts."""
    data, out = _loaded(path), []
    for number in np.unique(data["task"]):
        here = data["task"] == number
        fitted, tested = here & data["train"], here & ~data["train"]
        logits = of_task(data["x"][fitted], data["labels"][fitted], data["x"][tested])
        out.append(float(linear.losses(logits, data["labels"][tested]).mean()))
    return out


def probe(run: Path, step: int | None, world_tokens: int, path: Path, out: Path):
    """Keep the probe losses of a run's autoencoder, or of its checkpoint; of the stream's channels without a step."""
    subject = quality.open_world(run, EMBEDDED, world_tokens)
    config = config_of(run)
    sae = interop.load(run, subject.mesh)
    if step is not None:
        sae = export_of(restore(run, config, subject.mesh, step), config)

    def latent(x, y, x_test):
        best = best_latent(sae, x, y)
        z = np.asarray(preactivations(sae, x_test, np.array([best.latent])))[:, 0]
        return best.w * np.asarray(z, np.float64) + best.b

    with jax.set_mesh(subject.mesh):
        quality.write_result(out, {"texts": str(path.name)}, losses(path, latent))


def baselines(path: Path) -> dict[str, float]:
    """Mean losses of the best channel of the stream, and of no probe at all."""

    def channel(x, y, x_test):
        best = best_channel(x, y)
        return best.w * x_test[:, best.latent].astype(float) + best.b

    def prevalence(x, y, x_test):
        share = np.clip(y.mean(), 1e-6, 1 - 1e-6)
        return np.full(len(x_test), np.log(share) - np.log1p(-share))

    return {"channels": float(np.mean(losses(path, channel))), "prevalence": float(np.mean(losses(path, prevalence)))}


def claims(rows: list[dict], channels: float) -> list[Claim]:
    seeds, k, n = sorted({row["seed"] for row in rows}), WORLDS[EMBEDDED].k, WORLDS[EMBEDDED].n
    value = {(r["family"], r["n"], r["k"], r["share"], r["seed"]): r["loss"] for r in rows}
    of = lambda family="topk", n=n, k=k, share=1.0: np.array([value[family, n, k, share, seed] for seed in seeds])
    shares, ns = sorted({r["share"] for r in rows}), sorted({r["n"] for r in rows})
    ks = sorted({r["k"] for r in rows if r["family"] == "topk"})
    middle = max(ks[1:-1], key=lambda k: of(k=k).mean())
    rises = np.minimum(of(k=middle) - of(k=ks[0]), of(k=middle) - of(k=ks[-1]))
    larger = "the model and its training text: it read Python source, and the tasks are about prose"
    return [
        Claim(
            "The probe loss falls through training",
            SOURCE,
            "0.46 to 0.44 in GPT-4",
            f"loss at the end minus after {shares[0]:.0%} of training, nats",
            interval(of() - of(share=shares[0])),
            below=0,
            needs=larger,
        ),
        Claim(
            "It falls with n",
            SOURCE,
            "falls",
            f"loss at n {ns[-1]} minus n {ns[0]}, nats",
            interval(of(n=ns[-1]) - of(n=ns[0])),
            below=0,
            needs=larger,
        ),
        Claim(
            "Against k it rises, then falls",
            SOURCE,
            "rises, then falls",
            f"loss at k {middle} minus the larger of k {ks[0]} and {ks[-1]}, nats",
            interval(rises),
            above=0,
            needs=larger,
        ),
        Claim(
            "TopK's latents are better than ReLU's",
            SOURCE,
            "better",
            f"loss of TopK minus ReLU's at L0 near {k}, nats",
            interval(of() - of("relu")),
            below=0,
            needs=larger,
        ),
        Claim(
            "Latents are much better than channels",
            SOURCE,
            "0.49 to 0.52 against 0.600",
            "loss of TopK minus channels', nats",
            interval(of() - channels),
            below=0,
            size=-0.08,
            needs=larger,
        ),
    ]


def draw(rows: list[dict], facts: dict, path):
    picture, axes = figure(11, 3.6, 1, 3, sharey=True)
    n, k = WORLDS[EMBEDDED].n, WORLDS[EMBEDDED].k
    topk = [row for row in rows if row["family"] == "topk"]
    panels = (
        ("share", "share of training", [r for r in topk if (r["n"], r["k"]) == (n, k)], f"n {n}, k {k}"),
        ("n", "latents n", [r for r in topk if (r["k"], r["share"]) == (k, 1)], f"k {k}"),
        ("k", "k", [r for r in topk if (r["n"], r["share"]) == (n, 1)], f"n {n}"),
    )
    relu = [row["loss"] for row in rows if row["family"] == "relu"]
    for ax, (name, label, some, title) in zip(axes[0], panels):
        at = sorted({row[name] for row in some})
        of = lambda value, name=name, some=some: [row["loss"] for row in some if row[name] == value]
        ax.plot(at, [np.mean(of(value)) for value in at], "o-", color="black", label="TopK, best latent")
        for value in at:
            ax.plot([value] * len(of(value)), of(value), ".", color="black", markersize=4, alpha=0.6)
        ax.axhline(np.mean(relu), color="#8a8a8a", linestyle="--", linewidth=1.3, label=f"ReLU, L0 near {k}")
        ax.axhline(facts["channels"], color="#1b6ca8", linestyle=":", linewidth=1.6, label="best channel of the stream")
        log_scale(ax.xaxis)
        ax.set_xticks(at, [f"{value:g}" for value in at])
        ax.set_xlabel(label)
        ax.set_title(title, fontsize=10)
    axes[0, 0].set_ylabel("probe loss (nats)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=110)


def main():
    settings = tyro.cli(Settings, description=__doc__)
    found = quality.search(settings, EMBEDDED)
    k, lr = WORLDS[EMBEDDED].k, found["topk"].lr
    steps = -(-settings.tokens // settings.batch_size)
    points: dict[tuple[Run, float], dict] = {}
    for seed in range(settings.seeds):
        runs = [quality.topk_of_size(lr, size, seed=seed) for size in settings.ns]
        runs += [at_l0(found, "topk", k, seed=seed) for k in settings.ks] + [at_l0(found, "relu", k, seed=seed)]
        points |= {(run, 1.0): {} for run in runs}
        points |= {(at_l0(found, "topk", k, seed=seed), part / CHECKPOINTS): {} for part in settings.shares}
    quality.trained(settings, [run for run, _ in points])
    some = folder(settings, next(iter(points))[0])
    path = settings.runs / f"probes-{settings.texts}.npz"
    if not path.exists():
        in_processes(activations, {"texts": (settings, some, path)}, settings.runs, 1, "reading texts")
    every, calls, results = -(-steps // CHECKPOINTS), {}, {}
    for run, share in points:
        step = None if share == 1 else round(share * CHECKPOINTS) * every
        out = settings.runs / "evaluations" / "probe_loss" / f"{run.name}-{share:g}.json"
        results[run, share] = out
        if quality.result(out, {"texts": path.name}) is None:
            calls[out.name] = (folder(settings, run), step, settings.eval_tokens, path, out)
    in_processes(probe, calls, settings.runs, settings.workers, "probing")
    rows = []
    for (run, share), out in results.items():
        of_tasks = quality.result(out, {"texts": path.name})
        row = {"family": run.family, "n": run.n, "k": run.k, "share": share, "seed": run.seed}
        rows.append(row | {"loss": float(np.mean(of_tasks)), "tasks": len(of_tasks)})
    facts = baselines(path)
    draw(rows, facts, quality.finish(settings, "probe_loss", rows, claims(rows, facts["channels"]), **facts))


if __name__ == "__main__":
    main()
