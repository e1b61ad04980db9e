"""Folders of activations, opened and checked: what is held out, which rows count, and what the whole is called.

The last twentieth of each shard is held out, so that neighbours lie in one part; or a folder of its own is, or the
held-out part of harvested activations.
"""

import hashlib
import json
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
class Files:
    """Folders of activations that were opened and found to be whole."""

    where: str
    shards: tuple[Shard, ...]
    held: tuple[int, ...]  # of each shard, its last blocks that are held out
    norms: tuple[np.ndarray, ...]  # of each shard, float32 [rows]
    median: float  # the lower median of the norms of rows that are not zero
    max_norm: float | None
    fingerprint: str  # of what the files hold; neither their names nor their ages are in it

    @property
    def width(self) -> int:
        return self.shards[0].width

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return max(shard.context or ROWS for shard in self.shards)

    @property
    def origin(self) -> dict | None:
        """The language model, hook point and context length that harvested activations are of; else None."""
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
            norms = self.norms[shard][start:stop]
            out |= (norms == 0) | (norms > self.max_norm * self.median)
        return out

    @cached_property
    def facts(self) -> dict:
        """What manifest.json says of the rows."""
        norms, limit = self._norms(), self.max_norm or OUTLIER
        return {
            "rows": sum(map(len, norms)),
            "median_norm": self.median,
            "largest_norm": max((float(part.max()) for part in norms if len(part)), default=0.0),
            "zero_rows": sum(int(np.count_nonzero(part == 0)) for part in norms),
            "outlier_rows": sum(int(np.count_nonzero(part > limit * self.median)) for part in norms),
            "outlier_norm": limit,
        }

    def summary(self) -> str:
        """The facts as a line to print."""
        facts = self.facts
        line = (
            f"{self.where}: {facts['rows']} rows of width {self.width}, median norm {facts['median_norm']:.4g}, "
            f"largest {facts['largest_norm']:.4g}; {facts['zero_rows']} rows are zeros, {facts['outlier_rows']} above "
            f"{facts['outlier_norm']:g} times the median"
        )
        if not facts["zero_rows"] and not facts["outlier_rows"]:
            return line
        if self.max_norm is not None:
            return f"{line}: these are left out"
        return f"{line}: these rule every metric that divides by the variance, and --max-norm leaves them out"

    def _norms(self) -> list[np.ndarray]:
        return [_of_tokens(shard, norms) for shard, norms in zip(self.shards, self.norms)]


def open_files(activations: str, held_out: str | None, max_norm: float | None, cache: Path) -> Files:
    """Open --activations, and --held-out if there is one; every file is read once, and again only when it changes.

    Raises BadInput if the files do not fit each other, are damaged, or hold numbers that are not finite.
    """
    shards = open_shards(activations, held_out)
    apart = open_shards(held_out) if held_out is not None else []
    both = (*shards, *apart)
    check_alike(both)
    held = [*(0 for _ in shards), *(blocks_of(shard) for shard in apart)] if apart else held_of(shards)
    with progress(sum(shard.rows * shard.width * shard.array.dtype.itemsize for shard in both)) as bar:
        scans = [scan(shard.path, shard.tensor, shard.array, cache, bar) for shard in both]
    ids = {shard.tokens.path: shard.tokens.ids for shard in both if shard.tokens}
    ids_digests = {path: remembered_digest(path, TOKENS, array, cache) for path, array in ids.items()}
    for shard, (digest, _) in zip(both, scans):
        _check_harvested(shard, shard.tensor, digest)
        _check_harvested(shard, TOKENS, ids_digests.get(shard.path))
    contents = [[list(shard.array.shape), str(shard.array.dtype), digest] for shard, (digest, _) in zip(both, scans)]
    contents += [[list(array.shape), str(array.dtype), ids_digests[path]] for path, array in ids.items()]
    fingerprint = hashlib.sha256(json.dumps([contents, held]).encode()).hexdigest()[:20]
    norms = tuple(norms for _, norms in scans)
    median = lower_median([_of_tokens(shard, part) for shard, part in zip(shards, norms)])
    return Files(activations, both, tuple(held), norms, median, max_norm, fingerprint)


def width_of(activations: str) -> int:
    """d of --activations; headers alone are read."""
    return open_shards(activations)[0].width


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
