"""Files that are there whole or not at all: what was there before survives a full disk or a kill."""

import os
from collections.abc import Callable
from pathlib import Path


def write_text(path: Path, text: str):
    write(path, lambda scratch: scratch.write_text(text))


def write(path: Path, fill: Callable[[Path], object]):
    """Make `path` by filling a file beside it and renaming that."""
    scratch = path.with_name(f".{path.name}.writing")
    try:
        scratch.touch()
        # Some writers make files that only their owner may read.
        mode = scratch.stat().st_mode
        fill(scratch)
        scratch.chmod(mode)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
