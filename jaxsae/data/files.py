"""Activations straight from files: a folder of .npy or .safetensors shards [rows, d], of any model.

Rows are read in blocks of 64 neighbours, which take the place of a language model's contexts: blocks come in a
shuffled order, and a chunk's rows are permuted. Every twentieth block is held out.
"""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
from tqdm import tqdm

from jaxsae.data.tokens import HELD_OUT_EVERY
from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.io import safetensors_rows

ROWS = 64


class FileSource:
    """Blocks of rows of the shards of a folder, in alphabetical order; raises BadInput for shards that do not fit."""

    dtype = np.float32
    rows = ROWS

    def __init__(self, folder: str, split: str, seed: int | None, cache: Path):
        import grain

        self.shards, self.width = open_shards(folder)
        self.shape = (ROWS, self.width)
        self.fingerprint = fingerprint_of(self.shards)
        _check_finite(self.shards, cache / f"finite-{self.fingerprint}")
        # A block lies in one shard; the few rows after a shard's last whole block are not used.
        blocks = [(s, r) for s, (_, rows) in enumerate(self.shards) for r in range(0, len(rows) - ROWS + 1, ROWS)]
        held = [i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for i in range(len(blocks))]
        self.blocks = [b for b, h in zip(blocks, held) if split == "all" or h == (split == "held_out")]
        if not self.blocks:
            raise BadInput(
                f"{folder} holds {sum(len(r) for _, r in self.shards)} rows: give at least {ROWS * HELD_OUT_EVERY} in "
                f"shards of {ROWS} or more, because every twentieth block of {ROWS} is held out"
            )
        order = grain.MapDataset.range(len(self.blocks))
        self.order = order if seed is None else order.seed(seed).shuffle().repeat()

    def __len__(self):
        return len(self.blocks)

    def host(self, start, stop):
        where = [self.blocks[int(self.order[i])] for i in range(start, stop)]
        return np.stack([np.asarray(self.shards[s][1][r : r + ROWS], np.float32) for s, r in where])

    def activations(self, host):
        return (host,)


def open_shards(folder: str) -> tuple[list, int]:
    """The shards of a folder, of which headers alone are read, and their width. Raises BadInput if they differ."""
    shards = [_open(path) for path in _shard_paths(folder)]
    return shards, _common_width(shards)


def _shard_paths(folder: str) -> list[Path]:
    paths = sorted(p for p in Path(folder).glob("*") if p.suffix in (".npy", ".safetensors"))
    if not paths:
        raise BadInput(f"{folder} holds no activations: give a folder of .npy or .safetensors files [rows, d]")
    return paths


def _open(path: Path):
    """(path, rows [rows, d]) without reading the rows."""
    try:
        rows = _npy_rows(path) if path.suffix == ".npy" else _safetensors_rows(path)
    except BadInput:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} cannot be read, give a whole file: {error}") from error
    if rows.ndim != 2 or not (rows.dtype.kind in "fiu" or rows.dtype == ml_dtypes.bfloat16):
        raise BadInput(
            f"{path} has shape {list(rows.shape)} and type {rows.dtype}: activations are real numbers [rows, d]"
        )
    return path, rows


def _npy_rows(path: Path):
    rows = np.lib.format.open_memmap(path, mode="r")
    # NumPy has no name for bfloat16 in its files; nothing else that is saved there has two bytes and no name.
    return rows.view(ml_dtypes.bfloat16) if rows.dtype == np.dtype("V2") else rows


def _safetensors_rows(path: Path):
    """The single 2-D tensor of a safetensors file, memory-mapped: the file is a header and then raw numbers."""
    header, start = safetensors_rows.header(path)
    tensors = {name: t for name, t in header.items() if name != "__metadata__" and len(t["shape"]) == 2}
    if len(tensors) != 1:
        raise BadInput(f"{path} holds {len(tensors)} tensors [rows, d]: a shard holds exactly one")
    (tensor,) = tensors.values()
    names = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": ml_dtypes.bfloat16}
    if tensor["dtype"] not in names:
        raise BadInput(f"{path} is of type {tensor['dtype']}: allowed are {', '.join(names)}")
    offset = start + tensor["data_offsets"][0]
    return np.memmap(path, names[tensor["dtype"]], "r", offset, tuple(tensor["shape"]))


def _common_width(shards) -> int:
    width = shards[0][1].shape[1]
    for path, rows in shards:
        if rows.shape[1] != width:
            raise BadInput(
                f"{path} has activations of width {rows.shape[1]}, but {shards[0][0]} of width {width}: "
                "all shards of a folder have one width"
            )
    return width


def fingerprint_of(shards) -> str:
    """Names shards by their names, shapes and times of change: they may be too large to be read for it."""
    facts = [(path.name, rows.shape, str(rows.dtype), path.stat().st_mtime_ns) for path, rows in shards]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _check_finite(shards, passed: Path):
    """One bad number makes every weight NaN, so all are checked, once: the file `passed` remembers."""
    if passed.exists():
        return
    total = sum(rows.nbytes for _, rows in shards)
    quiet = total < 1 << 30 or not processes.is_primary()
    with tqdm(total=total, unit="B", unit_scale=True, desc="checking activations", disable=quiet) as bar:
        for path, rows in shards:
            for start in range(0, len(rows), 65536):
                block = np.asarray(rows[start : start + 65536], np.float32)
                bad = np.argwhere(~np.isfinite(block))
                if len(bad):
                    row, column = bad[0]
                    raise BadInput(
                        f"{path} holds {block[row, column]} at row {start + row}, column {column}: "
                        "activations must be finite numbers; remove such rows"
                    )
                bar.update(block.nbytes)
    passed.parent.mkdir(parents=True, exist_ok=True)
    passed.touch()
