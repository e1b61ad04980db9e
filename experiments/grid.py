"""What the experiments share: many training runs, each on its own cores, resumed after a kill; results; figures."""

import dataclasses
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

from matplotlib.ticker import LogLocator, NullLocator
from tqdm import tqdm

from benchmarks.common import manifest
from jaxsae import interop, sweep
from jaxsae.config import Config, with_fields
from jaxsae.evals.subject import Subject
from jaxsae.presets import preset
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.evaluate import open_subject

RESULTS = Path(__file__).parent / "results"
# Told apart in greyscale by shade, marker and dash; the colours are for those who see them.
STYLES = {
    "local": {"color": "#e69f00", "marker": "^", "linestyle": "--"},
    "e2e": {"color": "#004d40", "marker": "o", "linestyle": "-"},
    "e2e_downstream": {"color": "#6aa5e0", "marker": "s", "linestyle": ":"},
}
LABELS = {"local": "local", "e2e": "e2e", "e2e_downstream": "e2e + downstream"}


def train_all(configs: dict[str, Config], folder: Path, workers: int, share: str = "none") -> dict[str, dict]:
    """{name: summary} of every run, each in folder/NAME; what is finished there is not trained again.

    `workers` processes train at once, each on its share of the cores. Raises BadInput if a run there had another
    configuration, and RunsFailed at the end if one failed.
    """
    return sweep.train_all(configs, folder, workers=workers, share=share)


def in_processes(function: Callable, calls: dict[str, tuple], folder: Path, workers: int, title: str):
    """Calls function(*arguments) for each of {name: arguments}, in `workers` processes at once, each on its share of
    the cores. They keep their compiled programs and their output in `folder`.
    """
    if not calls:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Runs that differ in traced numbers only are compiled once.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str((folder / "compiled").resolve())
    cores, context = sorted(os.sched_getaffinity(0)), get_context("spawn")
    free = context.Queue()
    for worker in range(workers):
        free.put((cores[worker::workers] or cores, str(folder / f"worker{worker}.log")))
    with ProcessPoolExecutor(workers, context, _pin, (free,)) as pool:
        names = {pool.submit(function, *arguments): name for name, arguments in calls.items()}
        with tqdm(total=len(names), desc=title, unit="run") as bar:
            for done in as_completed(names):
                done.result()
                bar.set_postfix_str(names[done])
                bar.update()


def _pin(free):
    """A process of its own cores, whose progress bars go to a file."""
    share, log = free.get()
    os.sched_setaffinity(0, share)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def relu(kind: str, hook: str, n: int, tokens: int, lr: float, sparsity: float, downstream_coef: float) -> Config:
    """A ReLU autoencoder of the embedded model, in the manner of Braun et al. 2024 but for these numbers.

    `kind` is the objective; the learning rate rises over a twentieth of the tokens.
    """
    numbers = {"sae.n": n, "tokens": tokens, "lr": lr, "sparsity": sparsity, "warmup": tokens // 20}
    if kind == "e2e_downstream":
        numbers["e2e_downstream.downstream_coef"] = downstream_coef
    return with_fields(preset(f"braun-embedded-{kind}"), hook=hook, checkpoint_every=10**6, **numbers)


def facts_of(config: Config, summary: dict) -> dict:
    """What the experiments compare runs by."""
    alive = round(config.sae.n * (1 - summary["dead_fraction"]))
    return {name: summary[name] for name in ("l0", "delta_ce", "kl", "nmse", "ce_original")} | {"alive": alive}


def subjects(folders: dict[str, Path], split: str, tokens: int) -> dict[str, Subject]:
    """{name: subject} of runs of one language model, hook point and text, which are opened once, on one device.

    The contexts hold about so many tokens of `split`, "train" or "held_out".
    """
    first, *_ = folders.values()
    subject = open_subject(first, EvalConfig(tokens=tokens, mesh=(1, 1)), split)
    return {name: replace(subject, sae=interop.load(path, subject.mesh), raw=None) for name, path in folders.items()}


def plain(settings) -> dict:
    """The settings of an experiment for its results, without folders, which say nothing on another machine."""
    said = dataclasses.asdict(settings)
    where = lambda value: isinstance(value, Path) or (isinstance(value, str) and "/" in value)
    short = lambda value: Path(value).name if where(value) else value
    return {name: [*map(short, v)] if isinstance(v, tuple) else short(v) for name, v in said.items()}


def keep(name: str, facts: dict, out: Path) -> Path:
    """Write facts as NAME.json in `out`, with the machine and the versions; its path."""
    out.mkdir(parents=True, exist_ok=True)
    about = manifest() | {package: metadata.version(package) for package in ("jax", "jaxsae")}
    path = out / f"{name}.json"
    path.write_text(json.dumps({"manifest": about, **facts}, indent=1) + "\n")
    return path


def log_scale(axis, subs: tuple[float, ...] = (1, 2, 5)):
    """A logarithmic axis of a figure with plain numbers at 1, 2 and 5 (or `subs`) times powers of 10."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def figure(width: float, height: float, *grid, **more):
    """A figure and its axes, plain and without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(*grid, squeeze=False, **more)
    for one in axes.flat:
        one.grid(color="0.92")
        one.spines[["top", "right"]].set_visible(False)
    return made, axes
