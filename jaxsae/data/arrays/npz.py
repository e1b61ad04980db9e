"""NumPy's .npz: an archive of .npy files, memory-mapped if it is not compressed (np.savez), else held in memory."""

import io
from pathlib import Path

import numpy as np

from jaxsae.data.arrays.npy import named
from jaxsae.io import zips

# Long enough for the header of any .npy file that NumPy reads.
HEADER = 16384


def read(path: Path) -> dict[str, np.ndarray]:
    return {
        name.removesuffix(".npy"): _array(zips.contents(path, member)) for name, member in zips.members(path).items()
    }


def _array(data: np.ndarray) -> np.ndarray:
    header = io.BytesIO(data[:HEADER].tobytes())
    version = np.lib.format.read_magic(header)
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = parse(header)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, not numbers")
    return named(np.ndarray(shape, dtype, data, header.tell(), order="F" if fortran else "C"))
