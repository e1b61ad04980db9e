"""Safetensors files by rows: written so that neither a host nor a device ever holds a second copy, read on demand.

The bytes are those of safetensors' own writer. An array whose rows lie on devices of several processes is gathered some
rows of every shard at a time: all processes take part, the primary one writes.
"""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.errors import BadInput

# The types of numbers that NumPy can hold, by safetensors' names.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_}
DTYPES |= {f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)}
# Bytes of rows that are gathered and written at once.
BLOCK = 64 << 20


def write(path: Path | None, tensors: dict, metadata: dict[str, str], block: int = BLOCK):
    """Write `tensors` (NumPy's, or jax.Arrays with nothing but rows sharded) to `path`; None only takes part."""
    header, offsets = _header(tensors, metadata)
    if path is None:
        for tensor in tensors.values():
            for _ in _blocks(tensor, block, wanted=False):
                pass
        return
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in tensors.items():
            for start, rows in _blocks(tensor, block):
                file.seek(8 + len(header) + offsets[name] + start * (rows.nbytes // max(1, len(rows))))
                file.write(rows.tobytes())


def _header(tensors: dict, metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """The file's header, and where after it each tensor begins."""
    from safetensors.numpy import save

    # Save empty tensors to learn safetensors' own order and dtype names.
    empty = save({name: np.zeros((0, *t.shape[1:]), t.dtype) for name, t in tensors.items()})
    facts = json.loads(empty[8 : 8 + int.from_bytes(empty[:8], "little")])
    offsets, end = {}, 0
    for name, fact in facts.items():
        shape = list(tensors[name].shape)
        offsets[name], end = end, end + math.prod(shape) * tensors[name].dtype.itemsize
        fact |= {"shape": shape, "data_offsets": [offsets[name], end]}
    text = json.dumps({"__metadata__": metadata} | facts, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8), offsets


def _blocks(tensor, block: int, wanted: bool = True) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of all rows, each block of at most so many bytes, or of one row.

    Where other processes hold some of them, all must come here; those that do not want them get none.
    """
    rows = max(1, block // max(1, tensor.nbytes // max(1, len(tensor))))
    if not isinstance(tensor, jax.Array) or tensor.is_fully_replicated:
        local = tensor.addressable_data(0) if isinstance(tensor, jax.Array) else tensor
        for start, part in _cut(local, rows):
            yield start, np.asarray(part)
    elif tensor.is_fully_addressable:
        for shard in tensor.addressable_shards:
            if shard.replica_id == 0:
                first = shard.index[0].start or 0
                for start, part in _cut(shard.data, rows):
                    yield first + start, np.asarray(part)
    else:
        shards = math.prod(tensor.sharding.mesh.shape[axis] for axis in _axes(tensor))
        each = len(tensor) // shards
        rows = min(each, max(1, rows // shards))
        for start in range(0, each, rows):
            # The last block begins earlier, so that all are of one shape; it writes some rows twice.
            start = min(start, each - rows)
            with jax.set_mesh(tensor.sharding.mesh):
                some = _gather(tensor, start, rows, _axes(tensor)).block_until_ready().addressable_data(0)
            for shard, part in enumerate(np.asarray(some)) if wanted else ():
                yield shard * each + start, part


def _cut(a, rows: int) -> Iterator[tuple[int, jax.Array]]:
    if len(a) <= rows:
        yield 0, a
        return
    for start in range(0, len(a), rows):
        start = min(start, len(a) - rows)
        yield start, a[start : start + rows] if isinstance(a, np.ndarray) else _rows(a, start, rows)


@partial(jax.jit, static_argnames="rows")
def _rows(a, start, rows: int):
    return lax.dynamic_slice_in_dim(a, start, rows)


def _axes(a: jax.Array) -> tuple[str, ...]:
    """The mesh axes that the rows of `a` lie over."""
    spec = a.sharding.spec[0]
    return (spec,) if isinstance(spec, str) else tuple(spec)


@partial(jax.jit, static_argnames=("rows", "axes"))
def _gather(a, start, rows: int, axes: tuple[str, ...]):
    """[n@axes, ...] -> [shards, rows, ...] on every device: rows from `start` on of every shard."""
    mine = jax.shard_map(lambda a, start: _rows(a, start, rows)[None], in_specs=(P(axes), P()), out_specs=P(axes))
    return jax.reshard(mine(a, start), P())


class Rows:
    """A tensor of a safetensors file, of which nothing is read before it is sliced."""

    def __init__(self, tensor):
        self._tensor, self.shape, self.dtype = tensor, tuple(tensor.get_shape()), np.dtype(DTYPES[tensor.get_dtype()])
        self.ndim = len(self.shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._tensor[rows]


def read(file: Path) -> dict[str, Rows]:
    """The tensors of a file by name. Raises BadInput if it is not a whole safetensors file of types in DTYPES."""
    from safetensors import SafetensorError, safe_open

    check_types(file)
    try:
        opened = safe_open(file, framework="np")
        return {name: Rows(opened.get_slice(name)) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error


def mapped(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as maps of it that can only be read. Raises BadInput as `read` does."""
    known, (facts, start) = read(file), header(file)
    if not file.stat().st_size > start:
        return {name: np.zeros(rows.shape, rows.dtype) for name, rows in known.items()}
    data = np.memmap(file, np.uint8, "r")
    place = lambda name: start + facts[name]["data_offsets"][0]
    return {name: np.ndarray(rows.shape, rows.dtype, data, place(name)) for name, rows in known.items()}


def header(file: Path) -> tuple[dict, int]:
    """The header of a file as JSON, and the number of bytes before its first tensor. Raises BadInput without one."""
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            return json.loads(opened.read(size)), 8 + size
    except (ValueError, OverflowError, MemoryError, OSError) as error:
        raise BadInput(f"{file} is not a safetensors file, or not a whole one: {error}") from error


def check_types(file: Path):
    """Raises BadInput if a tensor of the file is of a type that is not in DTYPES."""
    for name, tensor in header(file)[0].items():
        if name != "__metadata__" and tensor["dtype"] not in DTYPES:
            raise BadInput(
                f"{file} holds {name} in {tensor['dtype']}, which is not read: save it in F32, F16 or BF16 instead"
            )


def metadata(file: Path) -> dict[str, str]:
    """What a file says of itself."""
    return header(file)[0].get("__metadata__", {})
