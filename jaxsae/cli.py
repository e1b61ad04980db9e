"""The command `jaxsae`. Exit status: 0 done, 1 failed, 2 bad input, 130 or 143 interrupted and saved.

With --distributed each process has one, the same for all. If one process dies, the others end with 1, or with 134 if
JAX notices first and aborts them.
"""

import argparse
import errno
import logging
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxsae import compatibility, evals
from jaxsae.config import Config, from_json, with_fields, without_effect
from jaxsae.data.config import PrepareConfig
from jaxsae.distributed import processes
from jaxsae.distributed.processes import DistributedConfig
from jaxsae.errors import BadInput, Interrupted
from jaxsae.flags import FLAT
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.harvest_config import HarvestConfig


class EvaluationsFailed(Exception):
    """Some evaluations failed; what the others measured is saved."""


Debug = Annotated[bool, tyro.conf.arg(help="Show tracebacks.")]


@dataclass(frozen=True)
class Train:
    """Train a sparse autoencoder on a language model's activations, evaluate it and save it.

    Without any flag: a TopK autoencoder of the embedded language model, on the source files of the standard library.
    """

    settings: Annotated[Config, FLAT] = field(default_factory=Config)
    config: str | None = None
    """Defaults of all other flags from a config.json, of a run or written by hand."""
    preset: str | None = None
    """Defaults of all other flags from a published run, or from its small twin: see jaxsae/presets.py."""
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.record import table
        from jaxsae.run.train import started, train

        config = started(self.settings)
        if processes.is_primary():
            for note in without_effect(config, flags):
                print(f"jaxsae: {note}", file=sys.stderr)
        summary = train(config, {flag.removeprefix("--") for flag in flags})
        if processes.is_primary():
            print(table(summary))
            print(f"\nsaved in {config.run}: sae/, summary.json, training.png")


@dataclass(frozen=True)
class Eval:
    """Evaluate a run or an exported autoencoder on held-out text; prints a table, writes eval.json into its folder."""

    folder: tyro.conf.Positional[str]
    """Run folder, or a folder with an exported autoencoder."""
    metrics: tuple[Literal[("all", *evals.EVALUATIONS)], ...] = ("standard",)
    """Evaluations by name; all: those that can be computed here."""
    out: str | None = None
    """Folder to write eval.json into; default: the evaluated one, or that of the evaluated file."""
    on: Annotated[EvalConfig, FLAT] = field(default_factory=EvalConfig)
    evaluations: Annotated[evals.EvaluationConfigs, FLAT] = field(default_factory=evals.EvaluationConfigs)
    distributed: Annotated[DistributedConfig, FLAT] = field(default_factory=DistributedConfig)
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.compiled import keep_compiled
        from jaxsae.run.evaluate import evaluate
        from jaxsae.run.record import table
        from jaxsae.run.saved import config_of

        processes.start(self.distributed)
        path = Path(self.folder)
        keep_compiled(config_of(path).data.cache)
        # A file has no room for results: they go beside it.
        out = Path(self.out) if self.out else path.parent if path.is_file() else path
        results = evaluate(path, self.on, self.metrics, self.evaluations, out)
        if processes.is_primary():
            print(table(results))
            print(f"\nsaved in {out}: eval.json, eval/report.html")
        if failed := results.get("failed"):
            raise EvaluationsFailed("; ".join(f"{name} failed: {reason}" for name, reason in failed.items()))


@dataclass(frozen=True)
class Compare:
    """Put the evaluations of several folders side by side, on one page."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or folders with an eval.json."""
    out: str = "compare"
    """Folder to write compare.html into."""
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.report import compare

        print(f"saved in {compare([Path(folder) for folder in self.folders], Path(self.out))}")


@dataclass(frozen=True)
class Export:
    """Write a checkpoint of a run as an autoencoder: sae.safetensors and config.json."""

    folder: tyro.conf.Positional[str]
    """Run folder."""
    step: int | None = None
    """Step of the checkpoint; default: the newest."""
    out: str | None = None
    """Folder to write; default: sae/ in the run folder, or sae-STEP/ with --step."""
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.export import export

        print(f"saved in {export(Path(self.folder), self.step, self.out and Path(self.out))}")


@dataclass(frozen=True)
class Prepare:
    """Tokenise a text before runs need it, also on several hosts; what was stopped goes on where it was."""

    text: Annotated[PrepareConfig, FLAT] = field(default_factory=PrepareConfig)
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.prepare import prepare

        print(prepare(self.text))


@dataclass(frozen=True)
class PlanCommand:
    """Say whether a run fits devices that need not be here, and how long its steps take at least.

    With libtpu (pip install jaxsae[tpu]) the step is compiled for a TPU; else all is counted from formulas.
    """

    settings: Annotated[Config, FLAT] = field(default_factory=Config)
    config: str | None = None
    """Defaults of all other flags from a config.json, of a run or written by hand."""
    preset: str | None = None
    """Defaults of all other flags from a published run, or from its small twin: see jaxsae/presets.py."""
    topology: str | None = None
    """Devices: v4, v5e, v5p, v6e or tpu7x with the shape of a slice (v5p:4x4x4), or GPUs by number and hosts (h100:8,
    h100:2x8); default: those of this machine."""
    d_model: int | None = None
    """Width of the activations; default: that of --activations or of the language model."""
    json: bool = False
    """Print one JSON object."""
    find_largest_n: bool = False
    """Plan the largest --sae.n that fits."""
    compile: bool = True
    """Compile for TPUs if libtpu is installed."""
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.planning import command, report

        plan = command.run(self.settings, self.topology, self.d_model, self.find_largest_n, self.compile)
        print(report.to_json(plan) if self.json else report.table(plan))


@dataclass(frozen=True)
class Harvest:
    """Write a language model's activations to files, once, for many runs.

    A harvest that was stopped goes on when the same command is given again.
    """

    on: Annotated[HarvestConfig, FLAT]
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.compiled import keep_compiled
        from jaxsae.run.harvest import harvest

        keep_compiled(self.on.data.cache)
        done = harvest(self.on)
        out = self.on.out
        print("\n".join(f"--activations {out if len(done.hooks) == 1 else f'{out}#{hook}'}" for hook in done.hooks))


COMMANDS: dict[str, type] = {
    "train": Train,
    "eval": Eval,
    "compare": Compare,
    "export": Export,
    "prepare": Prepare,
    "harvest": Harvest,
    "plan": PlanCommand,
}


def main(args: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = sys.argv[1:] if args is None else args
    debug = "--debug" in args
    if not debug:
        # Orbax, and asyncio for it, log tracebacks of errors that Orbax also raises.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # While it trains, a run saves first (training/loop.py). Elsewhere this lets what is half written be tidied up.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command, flags = parse(args)
        command(flags)
        return processes.end(0)
    except SystemExit as stop:
        processes.end(stop.code if isinstance(stop.code, int) else 1, stop)
        raise
    except (Exception, KeyboardInterrupt) as error:
        status, message = _explain(error)
        if debug and not isinstance(error, Interrupted):
            traceback.print_exc()
        print(f"jaxsae: {processes.name()}{' '.join(message.split())}", file=sys.stderr)
        return processes.end(status, error)
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(args: list[str]) -> tuple[Callable, set[str]]:
    """The command of a command line, and the flags that were typed. Raises BadInput, or SystemExit from --help."""
    if not args or args[0] in ("-h", "--help"):
        lines = [f"    jaxsae {name:<8}{kind.__doc__.splitlines()[0]}" for name, kind in COMMANDS.items()]
        print("\n".join(["usage: jaxsae COMMAND [flags]", "", *lines, "", "jaxsae COMMAND --help explains its flags."]))
        sys.exit(0 if args else 2)
    name, *args = args
    if name not in COMMANDS:
        raise BadInput(f"there is no command {name!r}: allowed are {', '.join(COMMANDS)}")
    kind, default, objective = COMMANDS[name], {}, "local"
    if "settings" in kind.__dataclass_fields__:
        settings = default_config(compatibility.current_flags(args, objective)[0])
        default, objective = {"default": kind(settings=settings)}, settings.training.objective
    args, notes = compatibility.current_flags(args, objective)
    for note in notes:
        print(f"jaxsae: {note}", file=sys.stderr)
    command = tyro.cli(kind, args=args, prog=f"jaxsae {name}", **default)
    return command, {compatibility.normal(arg) for arg in args if arg.startswith("--")}


def default_config(args: list[str]) -> Config:
    """What the flags of `jaxsae train` default to: a file's, a preset's, or those of the autoencoder to start from.

    In this order: --config, --preset, the run that is resumed, --init-from, the defaults.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--config", "--preset", "--init-from", "--run", "--lm", "--objective"):
        early.add_argument(flag, flag.replace("-", "_").replace("__", "--", 1))
    early.add_argument("--resume", action="store_true")
    typed = early.parse_known_args(args)[0]
    sources = [flag for flag, value in (("--config", typed.config), ("--preset", typed.preset)) if value]
    sources += ["--init-from"] if typed.init_from and not typed.config else []
    if len(sources) > 1:
        raise BadInput(f"{' and '.join(sources)} both say what the other flags default to: give one of them")
    # Where that run was written, and whether it was resumed, is not what is asked for.
    settings_of = lambda path: with_fields(from_json(path), run=None, resume=False)
    if typed.config:
        return settings_of(Path(typed.config))
    if typed.preset:
        from jaxsae.presets import preset

        return preset(typed.preset)
    own = Path(typed.run or "") / "config.json"
    if typed.resume and typed.run and own.exists():
        return settings_of(own)
    if not typed.init_from:
        return Config()
    from jaxsae.run.saved import config_of

    saved = config_of(typed.init_from)
    # Its own tokens, batch and seed; how it was trained does not bind how it is trained further.
    config = with_fields(
        Config(lm=saved.lm, data=saved.data, sae=saved.sae),
        sparsity=saved.training.sparsity,
        mse_scale=saved.training.mse_scale,
    )
    if typed.lm or (typed.objective or "local") != "local":
        # A language model is asked for, or needed: it takes the place of saved activations, and reads whole contexts.
        of_files = {"activations": None, "held_out": None, "max_norm": None}
        config = with_fields(config, **of_files, skip_first=False, skip_tokens=())
    return config


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit status of what ended a command, and what to say of it."""
    if isinstance(error, Interrupted):
        return error.status, str(error)
    if isinstance(error, KeyboardInterrupt):
        # Outside the training loop there is nothing to save: checkpoints are written, or none is needed.
        return 130, "interrupted"
    if isinstance(error, BadInput):
        return 2, str(error)
    if _disk_is_full(error):
        return 2, f"the disk is full: what was saved before is whole; free space and --resume ({error})"
    if processes.is_peer_failure(error):
        return 1, f"another process is gone, so this one ends: see what it said; then start all with --resume ({error})"
    return 1, f"{type(error).__name__}: {error}"


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # tensorstore reports it as text.
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    sys.exit(main())
