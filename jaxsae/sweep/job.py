"""Runs that one process trains together: what every launcher runs in the end, in whatever process."""

import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxsae.errors import BadInput, Interrupted
from jaxsae.run import lock
from jaxsae.sweep import folder as folders

# What trains {name: Config}, as MODULE:FUNCTION; it calls on_done(name, summary or exception) as each run ends, and
# returns {name: summary or exception}.
TRAIN = "jaxsae.run.together:train"
# How long a run is waited for that another process still writes: one that was told to stop saves first.
PATIENCE_S = 60


def run(out: Path, names: Sequence[str], train: str = TRAIN):
    """Train the runs `names` of the sweep in `out` together, in this process.

    Why one failed is noted in the folder. One that another process trains is left to that. Raises Interrupted if a
    signal stopped training; what was trained so far is saved.
    """
    module, _, function = train.partition(":")
    free = [name for name in names if wait_free(out / name)]
    for name in free:
        folders.forget_failure(out, name)
    if not free:
        return
    on_done = partial(_note, out)
    try:
        results = getattr(importlib.import_module(module), function)(
            {name: folders.read_config(out, name) for name in free}, on_done
        )
    except Interrupted:
        raise
    except Exception as error:
        results = {name: error for name in free if folders.state(out, name) != folders.DONE}
    for name, result in results.items():
        on_done(name, result)
    if stop := next((result for result in results.values() if isinstance(result, Interrupted)), None):
        raise stop


def _note(out: Path, name: str, result: dict | Exception):
    """Note why a run failed, if it did and that is not noted yet; the traceback goes to stderr."""
    if not isinstance(result, Exception) or isinstance(result, Interrupted) or folders.failure(out, name) is not None:
        return
    if not isinstance(result, BadInput):
        traceback.print_exception(result)
    reason = str(result) if isinstance(result, BadInput) else f"{type(result).__name__}: {result}"
    print(f"jaxsae: {name} failed: {reason}", file=sys.stderr, flush=True)
    folders.note_failure(out, name, reason)


def wait_free(folder: Path, patience: float | None = None) -> bool:
    """Whether no process trains in a run folder, after waiting for one for so many seconds (default: PATIENCE_S)."""
    until = time.monotonic() + (PATIENCE_S if patience is None else patience)
    while True:
        try:
            lock.check_free(folder)
            return True
        except BadInput as error:
            if time.monotonic() > until:
                print(f"jaxsae: {error}", file=sys.stderr)
                return False
        time.sleep(0.2)
