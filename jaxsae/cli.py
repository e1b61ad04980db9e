"""The command `jaxsae`. Exit status: 0 done, 1 failed, 2 bad input, 130 or 143 interrupted and saved."""

import errno
import logging
import signal
import sys
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxsae.config import FLAT, Config
from jaxsae.errors import BadInput, Interrupted

Debug = Annotated[bool, tyro.conf.arg(help="Show tracebacks.")]


@dataclass(frozen=True)
class Train:
    """Train a sparse autoencoder on a language model's activations, evaluate it and save it.

    Without any flag: a TopK autoencoder of the embedded language model, on the source files of the standard library.
    """

    config: Annotated[Config, FLAT] = field(default_factory=Config)
    debug: Debug = False

    def __call__(self):
        from jaxsae.run import default_folder, table, train

        config = replace(self.config, run=self.config.run or default_folder(self.config))
        print(table(train(config)))
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
    debug: Debug = False

    def __post_init__(self):
        if self.tokens < 1:
            raise BadInput(f"--tokens is {self.tokens}: give at least 1")

    def __call__(self):
        from jaxsae.run import evaluate, table

        print(table(evaluate(Path(self.folder), self.tokens, self.mesh, self.text)))


def main(args: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    args = sys.argv[1:] if args is None else args
    debug = "--debug" in args
    if not debug:
        # Orbax logs tracebacks of errors that it also raises.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    # While it trains, a run saves first (training/loop.py). Elsewhere this lets what is half written be tidied up.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        tyro.extras.subcommand_cli_from_dict({"train": Train, "eval": Eval}, args=args, prog="jaxsae")()
        return 0
    except Interrupted as stop:
        print(f"jaxsae: {stop}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        # Outside the training loop there is nothing to save: checkpoints are written, or none is needed.
        return _fail("interrupted", 130, debug)
    except BadInput as error:
        return _fail(str(error), 2, debug)
    except Exception as error:
        if _disk_is_full(error):
            return _fail(
                f"the disk is full: what was saved before is whole; free space and --resume ({error})", 2, debug
            )
        return _fail(f"{type(error).__name__}: {error}", 1, debug)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"jaxsae: {' '.join(message.split())}", file=sys.stderr)
    return status


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
