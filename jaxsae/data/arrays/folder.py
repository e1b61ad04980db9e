"""The shards of a folder of activations, of which headers alone are read. b contexts, T positions, d width.

A folder is given as DIR, or as DIR#KEY if its files hold several arrays. Of a transcoder, another array of each file
holds what should come out at the same rows; d_out is its width. A folder's shards are all files that a reader knows,
in alphabetical order, those of sub-folders too. Token ids may lie beside the activations: as the array `tokens` in each
file, or as tokens.npy for all files of its folder. They are [rows], or [b, T], which makes contexts of flat rows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxsae.data import harvested
from jaxsae.data.arrays import READERS, read
from jaxsae.data.harvested import TOKENS, Harvest
from jaxsae.errors import BadInput

TOKEN_FILE = f"{TOKENS}.npy"


@dataclass(frozen=True)
class Tokens:
    """Token ids of some shard's rows."""

    path: Path
    ids: np.ndarray  # of the whole file, [rows] or [b, T]
    start: int = 0  # the first of the shard's


@dataclass(frozen=True)
class Shard:
    path: Path
    tensor: str  # name in the file, "" if it has none
    array: Any  # [rows, d] or [b, T, d]; nothing is read before it is sliced
    tokens: Tokens | None
    harvest: Harvest | None  # the harvest that it is of
    tensor_out: str | None = None  # of a transcoder: the name of what should come out
    array_out: Any = None  # [rows, d_out] or [b, T, d_out]

    @property
    def width(self) -> int:
        return self.array.shape[-1]

    @property
    def width_out(self) -> int | None:
        """d_out, None if there is no array of what should come out."""
        return None if self.tensor_out is None else self.array_out.shape[-1]

    @property
    def arrays(self) -> dict[str, Any]:
        """Its arrays of activations by their names in the file."""
        return {self.tensor: self.array} | ({} if self.tensor_out is None else {self.tensor_out: self.array_out})

    @property
    def rows(self) -> int:
        return math.prod(self.array.shape[:-1])

    @property
    def context(self) -> int | None:
        """T, None if only rows are known."""
        if len(self.array.shape) == 3:
            return self.array.shape[1]
        return self.tokens.ids.shape[1] if self.tokens is not None and self.tokens.ids.ndim == 2 else None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows number start to stop of all, float32 [stop - start, d]; of contexts, whole ones.

        What should come out stands beside what goes in, [stop - start, d + d_out].
        """
        if len(self.array.shape) == 3:
            start, stop = start // self.context, stop // self.context
        parts = [np.asarray(a[start:stop], np.float32).reshape(-1, a.shape[-1]) for a in self.arrays.values()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    def ids(self, start: int, stop: int) -> np.ndarray | None:
        """Token ids of these rows, [stop - start]; None if they are not known."""
        if self.tokens is None:
            return None
        return self.tokens.ids.reshape(-1)[self.tokens.start + start : self.tokens.start + stop]


def open_shards(where: str, without: str | None = None, out: str | None = None) -> list[Shard]:
    """The shards of DIR, DIR#KEY or one file, without those inside the folder `without`.

    `out` names the array in every file that holds what should come out of a transcoder.

    Raises BadInput if there are none, or if they do not fit each other.
    """
    place, key = split_key(where)
    shards: list[Shard] = []
    harvests = {place: _complete(place)}
    for path in _paths(place, without and split_key(without)[0].resolve()):
        if path.parent not in harvests:
            harvests[path.parent] = _complete(path.parent)
        harvest = harvests[path.parent]
        if harvest is None or path.name in harvest.shards:
            shards.append(_open(path, key, harvest, out))
    if not shards:
        raise BadInput(
            f"{place} holds no activations: give a folder of .npy or .safetensors files [rows, d] or [b, T, d], or of "
            f"{', '.join(ending for ending in READERS if ending not in ('.npy', '.safetensors'))}"
        )
    shards = shards if place.suffix in READERS else _with_token_files(shards)
    check_alike(shards)
    return shards


def split_key(where: str) -> tuple[Path, str | None]:
    """(DIR, KEY or None) of DIR#KEY; a # may also be part of a name that is there."""
    folder, mark, key = where.rpartition("#")
    return (Path(folder), key) if mark and folder and not Path(where).exists() else (Path(where), None)


def check_alike(shards: list[Shard]):
    """Raises BadInput if shards differ in width, or in whether they are contexts or rows, or in what they come from."""
    first = shards[0]
    for shard in shards:
        for has, others in ((shard.width, first.width), (shard.width_out, first.width_out)):
            if has != others:
                raise BadInput(
                    f"{shard.path} has activations of width {has}, but {first.path} of width {others}: "
                    "all shards of a folder have one width"
                )
        if (shard.context is None) != (first.context is None):
            kind = lambda shard: "rows" if shard.context is None else "contexts"
            raise BadInput(
                f"{shard.path} holds {kind(shard)}, but {first.path} {kind(first)}: give folders of one kind"
            )
        if origin_of(shard) != origin_of(first):
            raise BadInput(
                f"{shard.path} holds activations of another model or hook point than {first.path}: train on one"
            )


def origin_of(shard: Shard) -> dict | None:
    """The language model, hook points and context length that a harvested shard is of, as fields of a configuration."""
    harvest = shard.harvest
    if harvest is None:
        return None
    names = ("lm", "process_weights", "lm_precision", "lm_dtype", "context")
    hooks = {"hook": shard.tensor} | ({} if shard.tensor_out is None else {"hook_out": shard.tensor_out})
    return hooks | {name: getattr(harvest, name) for name in names}


def _paths(place: Path, without: Path | None) -> Iterator[Path]:
    if place.suffix in READERS and place.exists():
        yield place
    elif place.is_dir():
        for path in sorted(place.iterdir()):
            if path.name.startswith(".") or path.name == TOKEN_FILE or path.resolve() == without:
                continue
            if path.is_dir() or path.suffix in READERS:
                yield from _paths(path, without)


def _complete(folder: Path) -> Harvest | None:
    harvest = harvested.find(folder)
    if harvest is not None and not harvest.complete:
        raise BadInput(f"{folder} is an unfinished harvest: run the same `jaxsae harvest` again, and it goes on")
    for name in harvest.shards if harvest else ():
        if not (folder / name).exists():
            raise BadInput(f"{folder / name} is missing: run the same `jaxsae harvest` again, and it is made again")
    return harvest


def _open(path: Path, key: str | None, harvest: Harvest | None, out: str | None) -> Shard:
    arrays = read(path)
    array_out = None if out is None else _output(path, arrays, out)
    name = _chosen(path, {other: a for other, a in arrays.items() if other != out or key == out}, key)
    array = arrays[name]
    _check_array(path, array)
    if name == out:
        raise BadInput(f"--hook-out is {out}, which is what --activations {path}#{key} reads: name another array")
    if out is not None and array_out.shape[:-1] != array.shape[:-1]:
        raise BadInput(
            f"{path} holds {name} {list(array.shape)} and {out} {list(array_out.shape)}: a transcoder reads and makes "
            "activations of the same rows"
        )
    shard = Shard(path, name, array, None, harvest, out, array_out)
    return _beside(shard, path, _ids(path, arrays[TOKENS], shard.rows)) if TOKENS in arrays else shard


def _output(path: Path, arrays: Mapping[str, Any], name: str):
    """The array that holds what should come out of a transcoder."""
    if name not in arrays or not name:
        held = ", ".join(filter(None, arrays)) or "one array without a name"
        raise BadInput(f"--hook-out is {name}, which {path} does not hold: it holds {held}")
    _check_array(path, arrays[name])
    return arrays[name]


def _check_array(path: Path, array):
    numbers = array.dtype.kind in "iu" or _floating(array)
    if len(array.shape) not in (2, 3) or 0 in array.shape[1:] or not numbers:
        raise BadInput(
            f"{path} has shape {list(array.shape)} and type {array.dtype}: activations are real numbers [rows, d] or "
            "[b, T, d]"
        )


def _chosen(path: Path, arrays: Mapping[str, Any], key: str | None) -> str:
    """The name of the array that holds activations."""
    if key is not None:
        if key not in arrays:
            held = ", ".join(filter(None, arrays)) or "one array without a name, so leave out #KEY"
            raise BadInput(f"{path} holds no array {key!r}: it holds {held}")
        return key
    if list(arrays) == [""]:
        return ""
    names = [name for name, a in arrays.items() if name != TOKENS and len(a.shape) in (2, 3) and _floating(a)]
    if len(names) == 1:
        return names[0]
    held = f"{path} holds {len(names)} arrays of floating-point numbers [rows, d] or [b, T, d]"
    if not names:
        raise BadInput(f"{held}: a shard of activations holds one")
    raise BadInput(f"{held}, {', '.join(names)}: choose one by --activations DIR#KEY")


def _floating(array) -> bool:
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16


def _ids(path: Path, array, rows: int) -> np.ndarray:
    ids = np.asarray(array[:])
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or ids.size != rows:
        raise BadInput(
            f"{path} has tokens of shape {list(ids.shape)} and type {ids.dtype} beside {rows} rows of activations: "
            "give one whole number for each row, [rows] or [b, T]"
        )
    return ids


def _beside(shard: Shard, path: Path, ids: np.ndarray, start: int = 0) -> Shard:
    """The shard with its token ids, those of a file from number `start` on."""
    if len(shard.array.shape) == 3 and ids.ndim == 2 and ids.shape[1] != shard.context:
        raise BadInput(
            f"{path} has tokens of contexts of {ids.shape[1]}, but the activations in {shard.path} are of contexts of "
            f"{shard.context}: they do not belong together"
        )
    return replace(shard, tokens=Tokens(path, ids, start))


def _with_token_files(shards: list[Shard]) -> list[Shard]:
    """Each shard with its part of the tokens.npy in its folder, if there is one."""
    ids, starts = {}, {}
    for folder in dict.fromkeys(shard.path.parent for shard in shards):
        path, rows = folder / TOKEN_FILE, [shard.rows for shard in shards if shard.path.parent == folder]
        if path.is_file():
            ids[folder], starts[folder] = _ids(path, read(path)[""], sum(rows)), 0
            if ids[folder].ndim == 2 and any(count % ids[folder].shape[1] for count in rows):
                # A context would lie in two shards: only the tokens are known, not the positions.
                ids[folder] = ids[folder].reshape(-1)
    result = []
    for shard in shards:
        folder = shard.path.parent
        if folder in ids:
            shard = _beside(shard, folder / TOKEN_FILE, ids[folder], starts[folder])
            starts[folder] += shard.rows
        result.append(shard)
    return result
