"""How documents become contexts: where each lies in the shards of shards.py. T tokens of a context."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from jaxsae.data import shards
from jaxsae.data.shards import SPLITS, Facts
from jaxsae.errors import BadInput

# Marks the places of a context that hold nothing.
NOTHING = -1


@dataclass(frozen=True)
class Packing:
    """How documents become contexts."""

    context: int  # T
    bos: int | None = None
    documents: bool = False  # each begins a context
    separators: int = 1  # tokens between documents: 0 of token ids that were given

    def __post_init__(self):
        if self.room < 1:
            raise BadInput(
                f"a context of {self.context} tokens has no room for text after the token that begins it: give a "
                "larger --context"
            )

    @property
    def room(self) -> int:
        """Tokens of the text in a context."""
        return self.context - (self.bos is not None)

    def ends(self, folder: Path, facts: Sequence[Facts], split: str) -> np.ndarray:
        """The number of contexts of a part up to the end of each shard, [shards]."""
        part = SPLITS.index(split)
        if not self.documents:
            return np.cumsum([f.tokens[part] for f in facts], dtype=np.int64) // self.room
        of_shard = (_total(self, folder, number, part, facts[number]) for number in range(len(facts)))
        return np.cumsum([*of_shard], dtype=np.int64)

    def tokens_each(self, folder: Path, facts: Sequence[Facts], split: str) -> float:
        """How many tokens a context of a part holds, padding not counted, on average over these shards."""
        if not self.documents:
            return self.context
        contexts, part = self.ends(folder, facts, split)[-1], SPLITS.index(split)
        tokens = sum(f.tokens[part] - f.pieces[part] * self.separators for f in facts)
        return max(1.0, tokens / max(1, contexts)) + (self.bos is not None)

    def rows(self, folder: Path, facts: Sequence[Facts], split: str, numbers: Sequence[int]) -> np.ndarray:
        """Contexts of a part by their numbers in the order of the text, int32 [len(numbers), T]."""
        out = np.full((len(numbers), self.context), NOTHING, np.int32)
        fill = out if self.bos is None else out[:, 1:]
        if self.bos is not None:
            out[:, 0] = self.bos
        part = SPLITS.index(split)
        ends = self.ends(folder, facts, split) if self.documents else np.cumsum([f.tokens[part] for f in facts])
        for row, number in zip(fill, numbers):
            if self.documents:
                tokens = self._of_document(folder, facts, part, ends, number)
                row[: len(tokens)] = tokens
            else:
                self._of_stream(folder, facts, part, ends, number, row)
        return out

    def _of_stream(self, folder: Path, facts: Sequence[Facts], part: int, ends: np.ndarray, number: int, row):
        at, done = number * self.room, 0
        shard = int(np.searchsorted(ends, at, "right"))
        while done < self.room:
            begin = int(ends[shard] - facts[shard].tokens[part])
            piece = _tokens(folder, shard, part, facts[shard])[at - begin : at - begin + self.room - done]
            row[done : done + len(piece)] = piece
            at, done, shard = at + len(piece), done + len(piece), shard + 1

    def _of_document(self, folder: Path, facts: Sequence[Facts], part: int, ends: np.ndarray, number: int):
        shard = int(np.searchsorted(ends, number, "right"))
        number -= int(ends[shard - 1]) if shard else 0
        before = _of_pieces(self, folder, shard, part, facts[shard])
        piece = int(np.searchsorted(before, number, "right")) - 1
        starts = _starts(folder, shard, part, facts[shard])
        begin = int(starts[piece]) + (number - int(before[piece])) * self.room
        return _tokens(folder, shard, part, facts[shard])[
            begin : min(begin + self.room, int(starts[piece + 1]) - self.separators)
        ]


def _tokens(folder: Path, shard: int, part: int, facts: Facts) -> np.ndarray:
    first = facts.tokens[0]
    return shards.tokens_of(folder, shard)[first:] if part else shards.tokens_of(folder, shard)[:first]


def _starts(folder: Path, shard: int, part: int, facts: Facts) -> np.ndarray:
    first = facts.pieces[0] + 1
    starts = shards.starts_of(folder, shard)
    return (starts[first:] if part else starts[:first]).astype(np.int64)


@cache
def _total(packing: Packing, folder: Path, shard: int, part: int, facts: Facts) -> int:
    return int(_of_pieces(packing, folder, shard, part, facts)[-1])


@lru_cache(maxsize=256)
def _of_pieces(packing: Packing, folder: Path, shard: int, part: int, facts: Facts) -> np.ndarray:
    """The number of contexts up to the begin of each piece of a shard's part, and of all of them, [pieces + 1]."""
    lengths = np.diff(_starts(folder, shard, part, facts)) - packing.separators
    return np.concatenate([[0], np.cumsum(-(-lengths // packing.room))])
