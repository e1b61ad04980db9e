"""Files of torch.save, without torch and without running what is in them.

Such a file is a zip archive: a pickle of the object, and one member for each tensor's storage. A pickle is a program
that may call anything. Here it may call what rebuilds a tensor and make plain containers, and nothing else.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.io import zips

DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What damaged or hostile bytes make pickle and NumPy raise.
_DAMAGED = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, OverflowError, MemoryError, RecursionError, NotImplementedError, RuntimeError, ImportError),
)


def load(path: str | Path) -> Any:
    """The object in a file of torch.save: containers, numbers and text, with NumPy arrays in the place of tensors.

        load("ae.pt")["encoder.weight"]     # [n, d], a map of the file

    Arrays can only be read. Raises BadInput if the file is not whole, or holds anything but plain tensors in dicts,
    lists and tuples: nothing in it is ever run.
    """
    path = Path(path)
    try:
        members = zips.members(path)
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it holds {len(pickles)} pickled objects")
        folder = pickles[0].removesuffix("data.pkl")
        order = members.get(f"{folder}byteorder")
        if order is not None and zips.contents(path, order).tobytes() != b"little":
            raise BadInput(f"{path} was saved on a big-endian machine: save it on a little-endian one")
        storage = lambda key: zips.contents(path, members[f"{folder}data/{key}"])
        return _Unpickler(zips.contents(path, members[pickles[0]]), path, storage).load()
    except BadInput:
        raise
    except _DAMAGED as error:
        raise BadInput(
            f"{path} cannot be read as a file of torch.save (1.6 or later), give a whole one: {error}"
        ) from error


def tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name: keys and positions of nested containers joined by dots, "" of a tensor alone.

    Raises BadInput as `load` does.
    """
    return dict(_named(load(path), ""))


def _named(value, name: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, np.ndarray):
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from _named(inner, f"{name}.{key}" if name else str(key))


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: np.ndarray, path: Path, storage):
        super().__init__(io.BytesIO(data.tobytes()))
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str):
        """What a pickle may name. Of functions it gets new ones, so that it cannot change what others get."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild(*arguments)
        if module == "torch" and name in DTYPES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise BadInput(
            f"{self._path} holds {module}.{name}, which is not read, because reading it would run code: save plain "
            "tensors, or a dict of them"
        )

    def persistent_load(self, identity):
        kind, storage, key, _, _ = identity
        if kind != "storage" or storage not in DTYPES:
            raise BadInput(f"{self._path} holds a tensor of {storage}: allowed are {', '.join(DTYPES)}")
        return _Storage(DTYPES[storage], self._storage(key))


class _Storage:
    """The numbers that tensors are cut out of."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype, data: np.ndarray):
        self.dtype, self.data = np.dtype(dtype), data


def _rebuild(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None) -> np.ndarray:
    """The tensor [*size] that begins at `offset` of a storage; NumPy checks that it lies inside."""
    del requires_grad, hooks, metadata
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    width = storage.dtype.itemsize
    return np.ndarray(size, storage.dtype, storage.data, offset * width, tuple(step * width for step in stride))
