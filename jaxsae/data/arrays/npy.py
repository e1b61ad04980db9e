"""NumPy's .npy: one array, memory-mapped."""

from pathlib import Path

import ml_dtypes
import numpy as np


def read(path: Path) -> dict[str, np.ndarray]:
    return {"": named(np.lib.format.open_memmap(path, mode="r"))}


def named(array: np.ndarray) -> np.ndarray:
    """NumPy has no name for bfloat16 in its files; nothing else that is saved there has two bytes and no name."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
