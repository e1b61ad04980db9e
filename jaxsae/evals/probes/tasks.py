"""Binary tasks on texts: read from a folder, from the package sae-probes, or made from Python source (python_text.py).

A folder holds .jsonl files (or .jsonl.gz) with a line for each text:

    {"task": "genre_email", "split": "train", "text": "...", "label": 1}

Without "split", half of a task's texts, drawn at random, are for training.
"""

import csv
import gzip
import importlib.util
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput

SPLITS = {"train": True, "test": False}
# sae-probes: at most so many texts of a task, and so many of these to fit to.
TEXTS, TRAINED, SEED = 5000, 1024, 42


@dataclass(frozen=True)
class Task:
    """A question about texts that has two answers."""

    name: str
    texts: list[str]
    labels: np.ndarray  # [N] of 0 and 1
    train: np.ndarray  # [N] bool: which of them the probes are fitted to; the others score them

    def take(self, kept) -> "Task":
        """The texts at `kept`: their indices, or [N] bool."""
        kept = np.arange(len(self.texts))[kept]
        return Task(self.name, [self.texts[i] for i in kept], self.labels[kept], self.train[kept])

    def limited(self, limit: int | None) -> "Task":
        """At most `limit` texts to fit to and as many to score."""
        if limit is None:
            return self
        return self.take(np.sort(np.concatenate([np.flatnonzero(half)[:limit] for half in (self.train, ~self.train)])))


def read_folder(folder: str | Path) -> list[Task]:
    """The tasks of a folder, in the order of their first lines. Raises BadInput for files that are not as above."""
    files = sorted(path for path in Path(folder).glob("*") if path.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise BadInput(f"--probes.folder {folder} holds no .jsonl or .jsonl.gz files: give a folder that does")
    rows = defaultdict(list)
    for path in files:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = _row(line, f"{path}:{number}")
                rows[row["task"]].append(row)
    return [checked(_task(name, of_task)) for name, of_task in rows.items()]


def _row(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
        good = isinstance(row["text"], str) and row["label"] in (0, 1) and row.get("split", "train") in SPLITS
        row["task"] + ""
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{where} is no JSON object with task, text and label: {error!r}") from error
    if not good:
        raise BadInput(f"{where}: text must be a string, label 0 or 1, split (if there is one) train or test")
    return row


def _task(name: str, rows: list[dict]) -> Task:
    labels = np.array([int(row["label"]) for row in rows])
    if all("split" in row for row in rows):
        train = np.array([SPLITS[row["split"]] for row in rows])
    else:
        train = halves(labels)
    # The k-sparse probe validates on the last examples: they must be of both classes.
    order = np.random.default_rng(SEED).permutation(len(rows))
    return Task(name, [row["text"] for row in rows], labels, train).take(order)


def halves(labels) -> np.ndarray:
    """Which examples are for training [N] bool: half of each class, at random."""
    train = np.zeros(len(labels), bool)
    for label in (0, 1):
        own = np.random.default_rng(SEED).permutation(np.flatnonzero(labels == label))
        train[own[: (len(own) + label) // 2]] = True
    return train


def checked(task: Task) -> Task:
    """The task itself. Raises BadInput if a half lacks one of the classes."""
    for split, half in (("train", task.train), ("test", ~task.train)):
        if set(task.labels[half]) != {0, 1}:
            raise BadInput(f"the probe task {task.name} lacks texts of one class in its split {split}: add some")
    return task


def sae_probes_folder() -> Path:
    """Where the data of the installed package sae-probes lie; the package itself is not imported. BadInput without."""
    spec = importlib.util.find_spec("sae_probes")
    if spec is None or importlib.util.find_spec("zstandard") is None:
        raise BadInput(
            "--probes.tasks sae-probes needs the packages sae-probes and zstandard: install jaxsae[probes], or, for "
            "the tasks alone, pip install --no-deps sae-probes zstandard"
        )
    return Path(spec.origin).parent / "data"


def read_sae_probes(folder: Path) -> Iterator[Task]:
    """The binary tasks of sae-probes (Kantamneni et al. 2025), split as its `normal` setting splits them."""
    for row in _table(folder / "probing_datasets_MASTER.csv.zst"):
        if row["Data type"] == "Binary Classification":
            name = Path(row["Dataset save name"]).name
            rows = _table(folder / "cleaned_data" / f"{name}.zst")
            classes = sorted({row["target"] for row in rows})
            labels = np.array([classes.index(row["target"]) for row in rows])
            train, test = _sae_probes_split(labels[:TEXTS], min(len(labels) - 100, TRAINED))
            order = np.concatenate([train, test])
            texts = [rows[i]["prompt"] for i in order]
            yield Task(name.removesuffix(".csv"), texts, labels[order], np.arange(len(order)) < len(train))


def _sae_probes_split(labels, trained: int):
    """Indices to fit to and to score: balanced draws without replacement, from the package's seed and generator."""
    random, tested = np.random.RandomState(SEED), len(labels) - trained - 1
    sizes = {1: (-(-trained // 2), -(-tested // 2))}
    sizes[0] = (trained - sizes[1][0], tested - sizes[1][1])
    left = {label: np.flatnonzero(labels == label) for label in (1, 0)}
    halves = []
    for half in (0, 1):
        drawn = {label: random.choice(left[label], size=sizes[label][half], replace=False) for label in (1, 0)}
        left = {label: np.setdiff1d(left[label], drawn[label]) for label in (1, 0)}
        halves.append(drawn)
    return [random.permutation(np.concatenate([drawn[1], drawn[0]])) for drawn in halves]


def _table(path: Path) -> list[dict[str, str]]:
    import zstandard

    csv.field_size_limit(1 << 24)
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        return list(csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8", newline="")))
