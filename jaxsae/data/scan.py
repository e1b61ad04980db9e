"""One pass over the numbers of a file: are they finite, the norm of each row, and a digest of what the file holds.

The digest depends on neither the name nor the age of a file. Digest and norms are kept in the cache, so that a file is
read once: what was found is remembered by path, size and time of change, norms by the digest. d is the width of a row.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxsae.distributed import processes
from jaxsae.errors import BadInput

# Numbers that are read at once.
BLOCK = 1 << 24


def digest(array, block: int = BLOCK) -> str:
    """SHA-256, in hexadecimal, of the bytes of an array's numbers in the order of its indices."""
    sha = hashlib.sha256()
    for _, part in _parts(array, block):
        sha.update(_bytes(part))
    return sha.hexdigest()


def remembered_digest(path: Path, name: str, array, cache: Path) -> str:
    """`digest` of the array called `name` in a file, which is read only if it has changed since the last time."""
    note = _note(path, name, cache)
    if not note.exists():
        _write(note, lambda scratch: scratch.write_text(digest(array)))
    return note.read_text()


def scan(path: Path, name: str, array, cache: Path, bar: tqdm) -> tuple[str, np.ndarray]:
    """(digest, norms float32 [rows]) of an array [..., d] called `name` in a file; the norms are a map of a file.

    Raises BadInput if a number is not finite in float32: one such number would make every weight NaN.
    """
    note = _note(path, name, cache)
    kept = lambda found: cache / "activations" / f"{found}-{'x'.join(map(str, array.shape))}-{array.dtype}.norms.npy"
    if note.exists() and kept(note.read_text()).exists():
        return note.read_text(), np.load(kept(note.read_text()), mmap_mode="r" if array.shape[0] else None)
    sha, norms = hashlib.sha256(), np.empty(int(np.prod(array.shape[:-1])), np.float32)
    done = 0
    with ThreadPoolExecutor(1) as hasher:
        for start, part in _parts(array):
            hashed = hasher.submit(sha.update, _bytes(part))
            x = np.asarray(part, np.float32).reshape(-1, array.shape[-1])
            # In float64, squares of float32 are finite if the numbers are.
            squares = np.einsum("rd,rd->r", x, x, dtype=np.float64)
            if not np.isfinite(squares).all():
                raise BadInput(_not_finite(path, x, done, start, array))
            norms[done : done + len(x)] = np.minimum(np.sqrt(squares), np.finfo(np.float32).max)
            done += len(x)
            hashed.result()
            bar.update(part.nbytes)
    found = sha.hexdigest()
    _write(kept(found), lambda scratch: _save(scratch, norms))
    _write(note, lambda scratch: scratch.write_text(found))
    return found, norms


def progress(total: int) -> tqdm:
    """A bar of bytes; it is shown if there are many."""
    quiet = total < 1 << 30 or not processes.is_primary()
    return tqdm(total=total, unit="B", unit_scale=True, desc="checking activations", disable=quiet)


def lower_median(arrays: Sequence[np.ndarray]) -> float:
    """The lower median of the positive numbers of float32 arrays, 0 if there are none; exact, in little memory."""
    # Positive floats are in the order of their bits: find the upper half of the median's, then the lower.
    upper = np.zeros(1 << 16, np.int64)
    for bits in _positive(arrays):
        upper += np.bincount(bits >> 16, minlength=1 << 16)
    if not upper.any():
        return 0.0
    rank = (int(upper.sum()) - 1) // 2
    top = int(np.searchsorted(np.cumsum(upper), rank, "right"))
    lower = np.zeros(1 << 16, np.int64)
    for bits in _positive(arrays):
        lower += np.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=1 << 16)
    rank -= int(upper[:top].sum())
    low = int(np.searchsorted(np.cumsum(lower), rank, "right"))
    return float(np.uint32(top << 16 | low).view(np.float32))


def _positive(arrays: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for array in arrays:
        for _, part in _parts(array):
            yield np.asarray(part[part > 0]).view(np.uint32).astype(np.int64)


def _parts(array, block: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """(first index, part) of an array along its first axis."""
    step = max(1, block // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, array.shape[0], step):
        yield start, np.asarray(array[start : start + step])


def _bytes(part: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def _not_finite(path: Path, x: np.ndarray, done: int, start: int, array) -> str:
    row, column = np.argwhere(~np.isfinite(x))[0]
    value, where = x[row, column], f"row {done + row}"
    if len(array.shape) == 3:
        context, position = divmod(int(row), array.shape[1])
        where = f"context {start + context}, position {position}"
    return (
        f"{path} holds {value} at {where}, column {column}: activations must be finite numbers; remove such rows, or "
        "make them zeros and give --max-norm"
    )


def _note(path: Path, name: str, cache: Path) -> Path:
    files = [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]
    facts = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return cache / "activations" / hashlib.sha256(json.dumps([facts, name]).encode()).hexdigest()[:32]


def _save(scratch: Path, norms: np.ndarray):
    with scratch.open("wb") as file:
        np.save(file, norms)


def _write(path: Path, fill):
    """Make `path` whole at once. The scratch file has a name of its own: other runs may scan the same file now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{uuid.uuid4().hex}")
    try:
        fill(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
