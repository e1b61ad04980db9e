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
from dataclasses import replace
from pathlib import Path

import tyro

from jaxsae import compatibility
from jaxsae.commands import COMMANDS
from jaxsae.config import Config, from_json, with_fields
from jaxsae.distributed import processes
from jaxsae.errors import BadInput, Interrupted
from jaxsae.flags import several, spaced


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
        lines = [f"    jaxsae {name:<13}{kind.__doc__.splitlines()[0]}" for name, kind in COMMANDS.items()]
        print("\n".join(["usage: jaxsae COMMAND [flags]", "", *lines, "", "jaxsae COMMAND --help explains its flags."]))
        sys.exit(0 if args else 2)
    name, *args = args
    if name not in COMMANDS:
        raise BadInput(f"there is no command {name!r}: allowed are {', '.join(COMMANDS)}")
    kind, default, objective, hooks = COMMANDS[name], {}, "local", ()
    args = spaced("--hook", args)
    if "settings" in kind.__dataclass_fields__:
        settings = default_config(compatibility.current_flags(args, objective)[0])
        # One code of several hook points is one autoencoder; without it each hook point has its own.
        crosscoder = settings.sae.crosscoder and "--sae.no-crosscoder" not in args
        if name == "train" and "--sae.crosscoder" not in args and not crosscoder:
            hooks, args = several("--hook", args)
        default, objective = {"default": kind(settings=settings)}, settings.training.objective
    args, notes = compatibility.current_flags(args, objective)
    for note in notes:
        print(f"jaxsae: {note}", file=sys.stderr)
    command = tyro.cli(kind, args=args, prog=f"jaxsae {name}", **default)
    command = replace(command, hooks=hooks) if hooks else command
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
