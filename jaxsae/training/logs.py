"""Where a run's numbers go while it trains: metrics.jsonl always, TensorBoard and W&B if asked for. Process 0 only."""

import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.io import atomic
from jaxsae.sae.activation_functions.interface import Count

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class LogConfig:
    log_every: int = 10
    """Steps between two rows of metrics.jsonl; each row is the mean over them."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    tensorboard: bool = False
    """Also log for TensorBoard, into the run folder (needs the extra `logging`)."""
    wandb: str | None = None
    """Also log to this W&B project (needs the extra `logging`)."""

    def __post_init__(self):
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} is {getattr(self, name)}: give at least 1")


def check_packages(config: LogConfig):
    """Raises BadInput if a package that `config` asks for is not installed."""
    for flag, wanted, package in (
        ("--tensorboard", config.tensorboard, "tensorboardX"),
        ("--wandb", config.wandb, "wandb"),
    ):
        if wanted:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise BadInput(f'{flag} needs {package}: pip install "jaxsae[logging]"') from error


class Logs:
    """Writes rows {name: number} to every sink. Use as a context manager."""

    def __init__(self, folder: Path, config: LogConfig, step: int, about: dict, counts: Mapping[str, Count] = {}):
        """Rows of metrics.jsonl after `step`, which a killed run left, are dropped: they will be written again.

        `counts` are metrics that have a limit: the first row above it is told on stderr.
        """
        self._sinks: list[Callable[[dict], None]] = []
        self._close: list[Callable[[], None]] = []
        if processes.is_primary():
            self._open_jsonl(folder / METRICS, step)
            self._sinks += [_warning(metric, count) for metric, count in counts.items()]
            if config.tensorboard:
                self._open_tensorboard(folder)
            if config.wandb:
                self._open_wandb(folder, config.wandb, about)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for close in self._close:
            close()

    def write(self, row: dict):
        for sink in self._sinks:
            sink(row)

    def _open_jsonl(self, path: Path, step: int):
        kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
        atomic.write_text(path, "".join(kept))
        file = path.open("a")

        def write(row):
            file.write(json.dumps(row) + "\n")
            file.flush()

        self._sinks.append(write)
        self._close.append(file.close)

    def _open_tensorboard(self, folder: Path):
        from tensorboardX import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))

        def write(row):
            for name, value in row.items():
                writer.add_scalar(name, value, row["tokens"])

        self._sinks.append(write)
        self._close.append(writer.close)

    def _open_wandb(self, folder: Path, project: str, about: dict):
        import wandb

        # Runs of the same name in other folders are other runs.
        name = f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
        run = wandb.init(project=project, name=folder.name, id=name, resume="allow", dir=folder, config=about)
        self._sinks.append(lambda row: run.log(row, step=row["step"]))
        self._close.append(run.finish)


def _warning(metric: str, count: Count) -> Callable[[dict], None]:
    """A sink that warns on stderr of the first row whose `metric` is above its limit."""
    warned = False

    def write(row):
        nonlocal warned
        if not warned and row[metric] > count.limit:
            warned = True
            text = f"jaxsae: step {row['step']}: {row[metric]:.2%} of {count.warning} ({metric} in {METRICS})"
            # Above the progress bar, and not into it.
            tqdm.write(text, sys.stderr)

    return write


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; an unfinished last line, which a kill can leave, is ignored."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
