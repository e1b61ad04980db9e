"""The command `jaxsae`. Exit status: 0 done, 1 failed, 2 bad input, 130 or 143 interrupted and saved.

With --distributed each process has one, the same for all. Where one process dies, the others end with 1, or with 134
where JAX notices first and aborts them.
"""

import errno
import logging
import signal
import sys
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxsae import processes
from jaxsae.config import FLAT, Config, from_json, without_effect
from jaxsae.errors import BadInput, Interrupted
from jaxsae.processes import DistributedConfig
from jaxsae.training.config import TrainingConfig

Debug = Annotated[bool, tyro.conf.arg(help="Show tracebacks.")]


@dataclass(frozen=True)
class Train:
    """Train a sparse autoencoder on a language model's activations, evaluate it and save it.

    Without any flag: a TopK autoencoder of the embedded language model, on the source files of the standard library.
    """

    config: Annotated[Config, FLAT] = field(default_factory=Config)
    preset: str | None = None
    """Defaults of all other flags from a published run, or from its small twin: see jaxsae/presets.py."""
    debug: Debug = False
    flags: tyro.conf.Suppress[frozenset[str]] = frozenset()
    """Those that were typed."""

    def __call__(self):
        from jaxsae.folder import default_folder
        from jaxsae.run import table, train

        processes.start(self.config.distributed)
        if processes.is_first():
            for note in without_effect(self.config, self.flags):
                print(f"jaxsae: {note}", file=sys.stderr)
        config = replace(self.config, run=self.config.run or default_folder(self.config))
        summary = train(config)
        if processes.is_first():
            print(table(summary))
            print(f"\nsaved in {config.run}: sae/, summary.json, training.png")


@dataclass(frozen=True)
class Eval:
    """Evaluate a run or an exported autoencoder on held-out text; prints a table, writes eval.json into its folder."""

    folder: tyro.conf.Positional[str]
    """Run folder, or a folder with an exported autoencoder."""
    tokens: int = 262_144
    """Held-out tokens."""
    text: tuple[str, ...] = ()
    """Text sources, of which every twentieth document is used; those of the run unless given."""
    mesh: tuple[int, int] | None = None
    """Devices along `data` and along `latent`; chosen as in training unless given."""
    distributed: Annotated[DistributedConfig, FLAT] = field(default_factory=DistributedConfig)
    debug: Debug = False

    def __post_init__(self):
        if self.tokens < 1:
            raise BadInput(f"--tokens is {self.tokens}: give at least 1")

    def __call__(self):
        from jaxsae.run import evaluate, table

        processes.start(self.distributed)
        metrics = evaluate(Path(self.folder), self.tokens, self.mesh, self.text)
        if processes.is_first():
            print(table(metrics))


@dataclass(frozen=True)
class Plan:
    """Say whether a run fits devices that need not be here, and how long its steps take at least.

    With libtpu (pip install jaxsae[tpu]) the step is compiled for a TPU; else all is counted from formulas.
    """

    config: Annotated[Config, FLAT] = field(default_factory=Config)
    topology: str | None = None
    """Devices: v4, v5e, v5p, v6e or tpu7x with the shape of a slice (v5p:4x4x4), or GPUs by number and hosts (h100:8,
    h100:2x8); those of this machine unless given."""
    d_model: int | None = None
    """Width of the activations; that of --activations or of the language model unless given."""
    json: bool = False
    """Print one JSON object."""
    find_largest_n: bool = False
    """Plan the largest --sae.n that fits."""
    compile: bool = True
    """Compile for TPUs where libtpu is installed."""
    debug: Debug = False

    def __call__(self):
        from jaxsae.planning import command

        plan = command.run(self.config, self.topology, self.d_model, self.find_largest_n, self.compile)
        print(command.text(plan, self.json))


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
        train = tyro.conf.subcommand("train", default=Train(_defaults(args), flags=frozenset(_flags(args))))
        plan = tyro.conf.subcommand("plan", default=Plan(_defaults(args)))
        kinds = Annotated[Train, train] | Annotated[Eval, tyro.conf.subcommand("eval")] | Annotated[Plan, plan]
        tyro.cli(kinds, args=args, prog="jaxsae")()
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


def _flags(args: list[str]) -> dict[str, str | None]:
    """What was typed behind each flag."""
    given = {}
    for flag, value in zip(args, (*args[1:], None)):
        name, _, inline = flag.partition("=")
        given[name.replace("_", "-") if name.startswith("--") else name] = inline or value
    return given


def _defaults(args: list[str]) -> Config:
    """What the flags of `jaxsae train` mean unless given: a preset's, or those of the autoencoder to start from."""
    given = _flags(args)
    if given.get("--preset") and given.get("--start"):
        raise BadInput("--preset and --start both say what the other flags mean: give one of them")
    if given.get("--preset"):
        from jaxsae.presets import preset

        return preset(given["--preset"])
    if not given.get("--start"):
        return Config()
    from jaxsae.run import config_of_export

    # A run that is gone on with has said so itself, wherever it once started from.
    run = Path(given.get("--run") or "") / "config.json"
    goes_on = "--resume" in given and given.get("--run") and run.exists()
    saved = from_json(run) if goes_on else config_of_export(given["--start"])
    # Its own tokens, batch and seed; how it was trained does not bind how it is trained further.
    kept = {name: getattr(saved.training, name) for name in ("sparsity", "error_unit")}
    data = saved.data
    if given.get("--lm") or given.get("--objective", "local") != "local":
        # A language model is asked for, or needed: it takes the place of saved activations, and reads whole contexts.
        data = replace(data, activations=None, skip_first=False)
    return Config(model=saved.model, data=data, sae=saved.sae, training=TrainingConfig(**kept))


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
    if processes.is_loss(error):
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
