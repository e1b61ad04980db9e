"""Folders of activations, opened and checked: what is held out, which rows count, and what the whole is called.

The last twentieth of each shard is held out, so that neighbours lie in one part; or a folder of its own is, or the
held-out part of harvested activations.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxsae.data.arrays.folder import Shard, check_alike, open_shards, origin_of
from jaxsae.data.harvested import TOKENS, split_of
from jaxsae.data.scan import lower_median, progress, remembered_digest, scan
from jaxsae.data.tokens import HELD_OUT_EVERY
from jaxsae.errors import BadInput

# Rows of a block where the files do not say what is a context.
ROWS = 64
# Rows of so many times the median norm are counted if --max-norm says no other number.
OUTLIER = 10.0


@dataclass(frozen=True)
class Norms:
    """The norms of the rows of one array of every shard."""

    of: tuple[np.ndarray, ...]  # of each shard, float32 [rows]
    median: float  # the lower median of those that are not zero

    def outliers(self, shard: int, start: int, stop: int, limit: float) -> np.ndarray:
        """Which rows start to stop of a shard are zeros, or above `limit` times the median, bool [stop - start]."""
        norms = self.of[shard][start:stop]
        return (norms == 0) | (norms > limit * self.median)

    def facts(self, shards: Sequence[Shard], limit: float) -> dict:
        """What manifest.json says of the rows that are of a token."""
        norms = [_of_tokens(shard, part) for shard, part in zip(shards, self.of)]
        return {
            "rows": sum(map(len, norms)),
            "median_norm": self.median,
            "largest_norm": max((float(part.max()) for part in norms if len(part)), default=0.0),
            "zero_rows": sum(int(np.count_nonzero(part == 0)) for part in norms),
            "outlier_rows": sum(int(np.count_nonzero(part > limit * self.median)) for part in norms),
            "outlier_norm": limit,
        }


@dataclass(frozen=True)
class Files:
    """Folders of activations that were opened and found to be whole."""

    where: str
    shards: tuple[Shard, ...]
    held: tuple[int, ...]  # of each shard, its last blocks that are held out
    norms: tuple[Norms, ...]  # of what is read, and of a transcoder of what should come out
    max_norm: float | None
    fingerprint: str  # of what the files hold; neither their names nor their ages are in it

    @property
    def width(self) -> int:
        return self.shards[0].width

    @property
    def width_out(self) -> int | None:
        return self.shards[0].width_out

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return max(shard.context or ROWS for shard in self.shards)

    @property
    def origin(self) -> dict | None:
        """The language model, hook points and context length that harvested activations are of; else None."""
        return origin_of(self.shards[0])

    def token_ids(self, names: Sequence[str]) -> tuple[int, ...]:
        """The ids of tokens, each given as text: an id, or bos, eos or pad, which harvested activations know.

        Raises BadInput for a name that the files do not know.
        """
        known = self.shards[0].harvest.special_tokens if self.shards[0].harvest else {}
        for name in names:
            if not name.isdecimal() and name not in known:
                raise BadInput(
                    f"--skip-tokens has {name}, and {self.where} does not say which token that is: give its id"
                )
        return tuple(int(name) if name.isdecimal() else known[name] for name in names)

    def left_out(self, shard: int, start: int, stop: int, skip: Sequence[int] = ()) -> np.ndarray:
        """Which rows start to stop of a shard do not count, bool [stop - start]: those without a token, those of the
        tokens `skip`, and with --max-norm zeros and what is above it.
        """
        out, ids = np.zeros(stop - start, bool), self.shards[shard].ids(start, stop)
        if ids is not None:
            out |= np.isin(ids, (-1, *skip))
        if self.max_norm is not None:
            for norms in self.norms:
                out |= norms.outliers(shard, start, stop, self.max_norm)
        return out

    @cached_property
    def facts(self) -> dict:
        """What manifest.json says of the rows, those of what should come out as `out`."""
        read, *out = (norms.facts(self.shards, self.max_norm or OUTLIER) for norms in self.norms)
        return read | ({"out": out[0]} if out else {})

    def summary(self) -> str:
        """The facts in lines to print."""
        facts, first = self.facts, self.shards[0]
        lines = [self._line(self.where, self.width, facts)]
        return "\n".join(
            lines + ([self._line(first.tensor_out, self.width_out, facts["out"])] if "out" in facts else [])
        )

    def _line(self, name: str, width: int, facts: dict) -> str:
        line = (
            f"{name}: {facts['rows']} rows of width {width}, median norm {facts['median_norm']:.4g}, "
            f"largest {facts['largest_norm']:.4g}; {facts['zero_rows']} rows are zeros, {facts['outlier_rows']} above "
            f"{facts['outlier_norm']:g} times the median"
        )
        if not facts["zero_rows"] and not facts["outlier_rows"]:
            return line
        if self.max_norm is not None:
            return f"{line}: these are left out"
        return f"{line}: these rule every metric that divides by the variance, and --max-norm leaves them out"


def open_files(
    activations: str, held_out: str | None, max_norm: float | None, cache: Path, out: str | None = None
) -> Files:
    """Open --activations, and --held-out if there is one; every file is read once, and again only when it changes.

    `out` is the array of what should come out of a transcoder.

    Raises BadInput if the files do not fit each other, are damaged, or hold numbers that are not finite.
    """
    shards = open_shards(activations, held_out, out)
    apart = open_shards(held_out, out=out) if held_out is not None else []
    both = (*shards, *apart)
    check_alike(both)
    held = [*(0 for _ in shards), *(blocks_of(shard) for shard in apart)] if apart else held_of(shards)
    size = lambda array: math.prod(array.shape) * array.dtype.itemsize
    with progress(sum(size(array) for shard in both for array in shard.arrays.values())) as bar:
        scans = [[scan(shard.path, *named, cache, bar) for named in shard.arrays.items()] for shard in both]
    ids = {shard.tokens.path: shard.tokens.ids for shard in both if shard.tokens}
    ids_digests = {path: remembered_digest(path, TOKENS, array, cache) for path, array in ids.items()}
    contents = []
    for shard, of_shard in zip(both, scans):
        for (tensor, array), (digest, _) in zip(shard.arrays.items(), of_shard):
            _check_harvested(shard, tensor, digest)
            contents.append([list(array.shape), str(array.dtype), digest])
        _check_harvested(shard, TOKENS, ids_digests.get(shard.path))
    contents += [[list(array.shape), str(array.dtype), ids_digests[path]] for path, array in ids.items()]
    fingerprint = hashlib.sha256(json.dumps([contents, held]).encode()).hexdigest()[:20]
    norms = []
    for of_array in zip(*scans):
        found = tuple(norms for _, norms in of_array)
        norms.append(Norms(found, lower_median([_of_tokens(shard, part) for shard, part in zip(shards, found)])))
    return Files(activations, both, tuple(held), tuple(norms), max_norm, fingerprint)


def widths_of(activations: str, out: str | None = None) -> tuple[int, int | None]:
    """(d, d_out) of --activations, d_out that of the array `out`; headers alone are read."""
    first = open_shards(activations, out=out)[0]
    return first.width, first.width_out


def blocks_of(shard: Shard) -> int:
    return -(-shard.rows // (shard.context or ROWS))


def held_of(shards: Sequence[Shard]) -> list[int]:
    """How many of each shard's last blocks are held out: a twentieth in all, or the held-out part of a harvest."""
    if any(shard.harvest and split_of(shard.path.name) == "held_out" for shard in shards):
        return [blocks_of(shard) * (split_of(shard.path.name) == "held_out") for shard in shards]
    ends = np.cumsum([0, *map(blocks_of, shards)])
    if 1 < ends[-1] < HELD_OUT_EVERY:
        # Of so few blocks the last one.
        return np.diff(np.maximum(ends - ends[-1] + 1, 0)).tolist()
    return np.diff(ends // HELD_OUT_EVERY).tolist()


def _of_tokens(shard: Shard, norms: np.ndarray) -> np.ndarray:
    """The norms of those rows that are of a token: a harvest also has rows that are padding."""
    ids = shard.ids(0, shard.rows)
    return norms if ids is None or not (ids < 0).any() else norms[ids >= 0]


def _check_harvested(shard: Shard, tensor: str, digest: str | None):
    if shard.harvest and shard.harvest.shards[shard.path.name].get(tensor) != digest:
        raise BadInput(
            f"{shard.path} is damaged, its {tensor} are not those that were harvested: run the same `jaxsae harvest` "
            "again, and it is made again"
        )
