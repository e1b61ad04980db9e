"""Files of torch.save, without torch and without running what is in them.

Such a file is a zip archive: a pickle of the object, and one member for each tensor's storage. A pickle is a program
that may call anything. Here it may call what rebuilds a tensor and make plain containers, and nothing else.
"""

import io
import pickle
import pickletools
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
        return _Unpickler(_checked(zips.contents(path, members[pickles[0]])), path, storage).load()
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


def save(path: Path, tensors: dict[str, np.ndarray]):
    """Write {name: array} as torch.save writes an OrderedDict of tensors; `torch.load` reads it (weights_only too)."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    arrays = {name: np.asarray(a, order="C") for name, a in tensors.items()}
    program = [b"\x80\x02", _EMPTY, b"("]
    for number, (name, a) in enumerate(arrays.items()):
        steps = tuple(step // a.itemsize for step in a.strides)
        kept = b"(" + _text("storage") + f"ctorch\n{names[a.dtype]}\n".encode() + _text(str(number)) + _text("cpu")
        tensor = kept + _whole(a.size) + b"tQ" + _whole(0) + _tuple(a.shape) + _tuple(steps) + b"\x89" + _EMPTY
        program += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", tensor, b"tR"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join([*program, b"u."]))
        archive.writestr("archive/byteorder", "little")
        for number, a in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{number}", a.tobytes())
        archive.writestr("archive/version", "3\n")


# Opcodes of pickles of protocol 2.
_EMPTY = b"ccollections\nOrderedDict\n)R"
_text = lambda word: b"X" + len(word.encode()).to_bytes(4, "little") + word.encode()
_whole = lambda number: b"\x8a\x08" + number.to_bytes(8, "little", signed=True)
_tuple = lambda numbers: b"(" + b"".join(map(_whole, numbers)) + b"t"


def _checked(data: np.ndarray) -> np.ndarray:
    """A pickle, if what it remembers is numbered within its length: Python makes room for the largest number."""
    for opcode, argument, _ in pickletools.genops(data.tobytes()):
        if opcode.name.endswith("PUT") and argument > len(data):
            raise ValueError(f"its pickle remembers something as number {argument}")
    return data


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
