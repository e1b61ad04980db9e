"""probes: how well a single latent answers binary questions about texts (Gao et al. 2024, sec. 4.2).

For each task the latent and its logistic probe that do best on the task's training texts are scored on its others.
N texts of a task, n latents, d width.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tqdm import tqdm

from jaxsae.errors import BadInput
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.probes import linear
from jaxsae.evals.probes.best import Best, best_channel, best_latent, preactivations, top_latents, values_of
from jaxsae.evals.probes.python_text import python_tasks, source_files
from jaxsae.evals.probes.tasks import Task, read_folder, read_sae_probes, sae_probes_folder
from jaxsae.evals.probes.texts import last_activations, token_ids
from jaxsae.evals.subject import Subject

# Latents of the k-sparse probes.
KS = (1, 2, 5)
# Texts whose activations exist at once on the host.
TEXTS_AT_ONCE = 1 << 14
# What results say of a task beside numbers that have a mean; and the losses of probes.
FACTS = ("latent", "channel", "trained", "tested")
SCORED = ("loss", "prevalence_loss", "channel_loss", "linear_loss")


@dataclass(frozen=True)
class Config:
    tasks: Literal["python", "sae-probes"] = "python"
    """python: questions about places in Python source, made from the running Python's own files; sae-probes: the binary
    tasks of that package, which must be installed."""
    folder: str | None = None
    """Instead: tasks from the .jsonl or .jsonl.gz files of a folder, each line with task, text, label (0 or 1) and
    split (train or test)."""
    context: int = 64
    """Tokens of a text that are read, its last ones; the probe sees the last of all."""
    texts: int | None = None
    """At most so many texts of each task to fit to, and as many to score; default: all."""

    def __post_init__(self):
        if self.context < 1 or (self.texts is not None and self.texts < 2):
            raise BadInput(
                f"--probes.context is {self.context}, --probes.texts {self.texts}: give at least 1, and at least 2"
            )


def run(subject: Subject, config: Config) -> dict:
    """Means over tasks, with intervals, and the same numbers of each task under `per_task`.

    `loss` is the probe loss, of the best latent; `prevalence_loss`, `channel_loss` and `linear_loss` are the losses of
    no probe at all, of the best number of the activation itself and of a probe of them all; `auc_k2` and so on what a
    probe of 2 latents reaches.
    """
    tokenizer, read = subject.tokenizer(), dict.fromkeys(("tokens", "texts", "dropped", "left_out"), 0)
    per_task, deviations = {}, {name: defaultdict(float) for name in SCORED}
    for group in _groups(tasks_of(config), config.texts):
        texts = {text: i for i, text in enumerate(dict.fromkeys(text for task in group for text in task.texts))}
        ids = token_ids(tokenizer, list(texts), min(config.context, subject.lm.config.n_ctx))
        x, kept = last_activations(subject, ids)
        read["tokens"] += sum(map(len, ids))
        read["texts"] += len(texts)
        for task in tqdm(group, "probes", unit="task", disable=subject.quiet, leave=False):
            at = np.array([texts[text] for text in task.texts])
            read["dropped"] += int((~kept[at]).sum())
            task, at = task.take(kept[at]), at[kept[at]]
            if not all(set(task.labels[half]) == {0, 1} for half in (task.train, ~task.train)):
                read["left_out"] += 1
                continue
            per_task[task.name], losses = measure(subject, task, x[at])
            for name, own in losses.items():
                for text, deviation in zip(np.array(task.texts, object)[~task.train], (own - own.mean()) / len(own)):
                    deviations[name][text] += deviation
    out = {"tasks": len(per_task), **read, "source": config.folder or config.tasks}
    if not per_task:
        return out
    means = [name for name in next(iter(per_task.values())) if name not in FACTS and not name.endswith("_interval")]
    for name in means:
        out[name] = float(np.mean([of_task[name] for of_task in per_task.values()]))
        if name in SCORED:
            # Tasks that share texts share their luck: deviations are added up text by text.
            error = np.sqrt(np.square(list(deviations[name].values())).sum()) / len(per_task)
            out[f"{name}_interval"] = _interval(out[name], error)
    better = [of_task["loss"] < of_task["channel_loss"] for of_task in per_task.values()]
    return out | {"better_than_channel": float(np.mean(better)), "per_task": per_task}


def tasks_of(config: Config) -> Iterable[Task]:
    """The tasks that the flags name. Raises BadInput if they cannot be read."""
    if config.folder is not None:
        return read_folder(config.folder)
    return python_tasks() if config.tasks == "python" else read_sae_probes(sae_probes_folder())


def check(subject: Subject, config: Config):
    """Raises BadInput without a tokenizer, or without the files or the package that hold the tasks."""
    if subject.tokenizer is None:
        raise BadInput("--metrics probes reads text, and there is no tokenizer")
    subject.tokenizer()
    if config.folder is not None:
        read_folder(config.folder)
    elif config.tasks == "sae-probes":
        sae_probes_folder()
    else:
        source_files()


def measure(subject: Subject, task: Task, x) -> tuple[dict, dict]:
    """The numbers of one task, from activations x [N, d] of its texts; and the losses {name: [tested]} of its test."""
    fitted, tested = task.train, ~task.train
    y, y_test = task.labels[fitted], task.labels[tested]
    with jax.set_mesh(subject.mesh):
        latent, channel = best_latent(subject.sae, x[fitted], y), best_channel(x[fitted], y)
        z = np.asarray(preactivations(subject.sae, x[tested], np.array([latent.latent])))[:, 0]
        sparse = _sparse_probes(subject, x, y, fitted)
    share = np.clip(y.mean(), 1e-6, 1 - 1e-6)
    logits = {
        "loss": _logits(latent, z),
        "prevalence_loss": np.full(len(y_test), np.log(share) - np.log1p(-share)),
        "channel_loss": _logits(channel, x[tested][:, channel.latent]),
        "linear_loss": linear.full_probe(x[fitted], y, x[tested]),
    }
    losses = {name: linear.losses(own, y_test) for name, own in logits.items()}
    out = {"latent": latent.latent, "channel": channel.latent, "trained": len(y), "tested": len(y_test)}
    for name, own in losses.items():
        out |= {name: float(own.mean()), f"{name}_interval": _interval(own.mean(), own.std(ddof=1) / np.sqrt(len(own)))}
    out |= {"train_loss": latent.loss, "auc": linear.auc(logits["loss"], y_test)}
    out["linear_auc"] = linear.auc(logits["linear_loss"], y_test)
    for k, scores in sparse.items():
        out[f"auc_k{k}"] = linear.auc(scores, y_test)
        out[f"accuracy_k{k}"] = float(((scores > 0) == y_test).mean())
        out[f"f1_k{k}"] = linear.weighted_f1(scores > 0, y_test)
    return out, losses


def _sparse_probes(subject: Subject, x, y, fitted) -> dict[int, np.ndarray]:
    """{k: logits of the test texts} by probes of the k latents whose means differ most between the classes."""
    best = top_latents(subject.sae, x[fitted], y, max(KS), subject.selection)
    values = values_of(subject.sae, x, best, subject.selection)
    return {k: linear.sparse_probe(values[fitted][:, :k], y, values[~fitted][:, :k]) for k in KS if k <= len(best)}


def _groups(tasks: Iterable[Task], limit: int | None) -> Iterator[list[Task]]:
    """Tasks whose activations are computed together."""
    group: list[Task] = []
    for task in tasks:
        group.append(task.limited(limit))
        if sum(len(task.texts) for task in group) >= TEXTS_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _logits(probe: Best, z):
    return probe.w * np.asarray(z, np.float64) + probe.b


def _interval(mean: float, error: float) -> list[float]:
    """95 %, from a standard error."""
    return [float(mean - 1.96 * error), float(mean + 1.96 * error)]


def figure(result: dict, path: Path):
    """The losses of each task: a latent's with its interval, a channel's, a full probe's and no probe's."""
    from matplotlib.figure import Figure

    tasks = sorted(result.get("per_task", {}).items(), key=lambda item: item[1]["loss"])
    picture = Figure(figsize=(7, 1.2 + 0.19 * max(len(tasks), 5)), layout="constrained")
    ax = picture.subplots()
    rows = np.arange(len(tasks))
    take = lambda name: np.array([of_task[name] for _, of_task in tasks])
    ax.plot(take("prevalence_loss"), rows, "|", color="0.6", markersize=9, label="no probe (prevalence)")
    ax.plot(
        take("channel_loss"), rows, "o", mfc="none", color="tab:orange", markersize=5, label="best residual channel"
    )
    ax.plot(take("linear_loss"), rows, "x", color="tab:green", markersize=5, label="full linear probe")
    low, high = take("loss_interval").T.reshape(2, -1)
    ax.hlines(rows, low, high, color="tab:blue", linewidth=1)
    ax.plot(take("loss"), rows, "o", color="tab:blue", markersize=5, label="best latent, 95 %")
    ax.set_yticks(rows, [name.replace("_", " ") for name, _ in tasks], fontsize=7)
    ax.set(xlabel="loss on the test texts (nats)", xlim=(0, None), ylim=(-0.7, len(tasks) - 0.3))
    ax.grid(axis="y", color="0.93", linewidth=0.6)
    ax.set_axisbelow(True)
    picture.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "loss": """How well the best single latent answers a question, in nats, averaged over questions; lower is better.
    It is low only where a latent stands for the very thing that is asked.""",
    "channel_loss": "The same with the activation's own numbers: the mark to beat.",
    "linear_loss": "A probe on all of the activation: what there is to find.",
    "prevalence_loss": "Guessing by how frequent the answers are: the worst that makes sense.",
}

EVALUATION = Evaluation(
    run,
    """Each task is a question about texts with two answers. The activation is that at the last token of a text, of
    which the last --probes.context tokens are read (default 64); texts whose last token training left out are dropped,
    and tasks left out that lose a class so. For every latent a logistic probe p = sigmoid(w z + b) of its
    pre-activation z is fitted to the training texts, by Newton's method with both parameters' Hessian; z is
    standardised for that and 1e-6 / 2 (w^2 + b^2) added to the mean loss, which keeps the probe of a separable task
    finite and moves no other. The latent with the least loss on the training texts is kept, the lowest number of
    equals, and its loss on the test texts is the task's: the two never share a text within a task, so the choice among
    many latents does not flatter the score. loss is the mean over tasks, in nats; train_loss the same on the texts that
    chose the latent, as the paper reports it. prevalence_loss: the training texts' share of each class as prediction;
    channel_loss: the same as loss with the activation's own numbers in place of latents; linear_loss: logistic
    regression on all of them, standardised, the strength of its squared penalty (of six between 10 and 1e-4) chosen by
    3-fold cross-validation on the training texts. better_than_channel: the share of tasks whose loss is below their
    channel_loss. Intervals are 95 %, from the spread over test texts of these tasks (texts that tasks share count
    once), not over tasks that might have been asked, nor over training texts. auc_k, accuracy_k, f1_k: sae-probes'
    k-sparse probe (Kantamneni et al. 2025) on the k latents whose values, each divided by its mean where it is not 0,
    have the largest difference between the classes' means; logistic regression with a squared penalty, its strength of
    ten between 1e-5 and 1e5 by AUC on the last fifth of the training texts; f1 is weighted by class. The python tasks
    are balanced, of at most 150 training and 150 test texts a class, from the packages email, json and unittest of the
    running Python, and may differ with its version; stretches of 4,000 characters of a file are in turn for training
    and for testing. The tasks of sae-probes are split as its `normal` setting splits them. Those of a folder keep their
    splits, or are halved by class.""",
    Config,
    needs_lm=True,
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
