"""Several runs that read the same activations, trained in one process: which can be, and how they end."""

import dataclasses
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

from jaxsae.config import Config, fields_of
from jaxsae.distributed import processes
from jaxsae.errors import Interrupted
from jaxsae.run import folder as folders
from jaxsae.run.compiled import keep_compiled
from jaxsae.run.folder import CONFIG, SUMMARY
from jaxsae.run.inputs import with_origin
from jaxsae.run.runs import Runs
from jaxsae.run.train import train_runs
from jaxsae.sae import activation_functions
from jaxsae.training.logs import LogConfig
from jaxsae.training.stacked import TRACED

Share = Literal["none", "stack", "pass"]
Outcome = dict | Exception

# What is of one run alone: where it is written and what it logs.
OWN = {"run", "resume", *(f.name for f in dataclasses.fields(LogConfig))}


def groups(configs: dict[str, Config], share: Share) -> list[list[str]]:
    """The names of runs that can be trained together, in groups, in their order.

    none: each by itself. stack: those that share one compiled step too, so that they differ in the fields of
    `stacked.TRACED` alone. pass: all that read the same batches; they may differ in the autoencoder and how it is
    trained, and in the hook point of one language model. Seeds may differ if --data-seed is the same: else the order of
    the data does. Any part of a group is one too. W&B takes one run from a process, so such runs are by themselves.
    """
    together: dict[str, list[str]] = {}
    for number, (name, config) in enumerate(configs.items()):
        alone = share == "none" or config.log.wandb is not None
        key = str(number) if alone else str(shared_fields(config, share))
        together.setdefault(key, []).append(name)
    return [*together.values()]


def shared_fields(config: Config, share: Literal["stack", "pass"]) -> dict:
    """{field: value} of all in which the runs of a group agree; `order_seed` is the seed of the order of the data."""
    fields = {name: value for name, value in fields_of(config).items() if name not in OWN}
    order = {"order_seed": config.training.batch.order_seed}
    # Such an objective runs the language model itself: only the program can be shared.
    if share == "stack" or config.training.type.reads == "contexts":
        family = activation_functions.get(config.sae.activation)
        traced = set(TRACED) - (set() if family.views is None else {"sae.k"})
        return {name: value for name, value in fields.items() if name not in traced} | order
    names = {"eval_tokens", "objective", "tokens", "batch_size", "mesh"}
    names |= {name for part in (config.lm, config.data, config.distributed) for name in fields_of(part)}
    reads_one = config.lm.hook_out is None and not config.sae.crosscoder
    if config.data.activations is None and reads_one:
        names -= {"hook"}
    return {name: value for name, value in fields.items() if name in names} | order


def train(
    configs: dict[str, Config], on_done: Callable[[str, Outcome], None] | None = None, asked: Collection[str] = ()
) -> dict[str, Outcome]:
    """Train a group of `groups` in this process; returns the summary of each run, or the error of one that failed.

    Each has a `run` folder of its own, and `resume` as alone; one that is finished is skipped. `on_done(name, outcome)`
    is called as each ends. One that fails does not stop the others. `asked` as in run/train.py. Raises Interrupted when
    all are saved.
    """
    first = next(iter(configs.values()))
    processes.start(first.distributed)
    keep_compiled(first.data.cache)
    configs = {name: processes.on_all(partial(with_origin, config)) for name, config in configs.items()}
    runs = Runs(configs, *([] if on_done is None else [on_done]))
    with ExitStack() as held:
        try:
            runs.each(lambda name, config: _hold(runs, name, config, held))
            if runs.going:
                train_runs(runs, asked)
        except Interrupted:
            raise
        except Exception as error:
            # What all of them read cannot be opened, or the machine failed.
            if processes.is_distributed():
                raise
            for name in [*runs.going]:
                runs.done(name, error)
    return {name: runs.outcomes[name] for name in configs}


def _hold(runs: Runs, name: str, config: Config, held: ExitStack):
    """Let `held` hold the folder of a run, unless the run is finished."""
    if summary := processes.on_primary(partial(_finished, config)):
        runs.done(name, summary)
    else:
        held.enter_context(folders.written_by_this_run(Path(config.run), config))


def _finished(config: Config) -> dict | None:
    """The summary of a run that is finished. Raises BadInput if another configuration is asked of its folder."""
    folder = Path(config.run)
    if not config.resume or not (folder / CONFIG).exists():
        return None
    folders.check(folder, config)
    summary = folders.read(folder / SUMMARY)
    return summary if summary.get("step") == config.training.steps else None
