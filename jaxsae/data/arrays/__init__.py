"""Files that hold arrays of activations, one reader per format.

A reader is a function from a path to the arrays in the file by name ("" of an array without one). Nothing of them is
read before they are sliced along their first axis; they have `shape`, `ndim` and `dtype`. A format is one file that
defines `read`, and one line in `READERS`.
"""

import importlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsae.errors import BadInput

# Readers by the ending of a file's name, imported when used.
READERS = {
    ".npy": "jaxsae.data.arrays.npy",
    ".npz": "jaxsae.data.arrays.npz",
    ".safetensors": "jaxsae.data.arrays.safetensors",
    ".pt": "jaxsae.data.arrays.torch",
    ".pth": "jaxsae.data.arrays.torch",
    ".zarr": "jaxsae.data.arrays.zarr",
}
# What damaged files make NumPy, zipfile and zarr raise.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, zipfile.BadZipFile)
_DAMAGED += (OverflowError, MemoryError, RecursionError)


def read(path: Path) -> Mapping[str, Any]:
    """The arrays of a file by name. Raises BadInput if it cannot be read."""
    try:
        return importlib.import_module(READERS[path.suffix]).read(path)
    except BadInput:
        raise
    except _DAMAGED as error:
        raise BadInput(f"{path} cannot be read, give a whole file: {error}") from error
