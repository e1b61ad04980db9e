"""Tokenised text on disk: a folder of shards, each of some millions of characters of consecutive documents.

    000000.npy          token ids, uint16 or int32: those of the training documents, then those of the held-out ones
    000000.starts.npy   where each document begins in its part, uint32: [documents + 1] of training, then of held-out
    000000.json         the facts of the shard, written last: a shard that has them is whole
    end.json            the number of shards, once the end of the text was reached

Of text, an end-of-text token stands before each document; token ids that were given stand as they are. A document that
is longer than a shard is as several.
"""

import json
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxsae.data.records import Chat, Document

SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one that is longer than a shard."""

    content: Document
    first: bool  # of its document
    held_out: bool


@dataclass(frozen=True)
class Shard:
    """What becomes a shard."""

    number: int
    pieces: Sequence[Piece]
    characters: int
    bad: Sequence[str] = ()  # why records between its documents were left out


@dataclass(frozen=True)
class Facts:
    """What is known of a shard that was written; pairs are of its training and its held-out part."""

    documents: tuple[int, int]
    pieces: tuple[int, int]
    tokens: tuple[int, int]
    characters: int
    bad: int = 0
    first_bad: tuple[str, ...] = ()


def write(folder: Path, shard: Shard, tokenizer) -> Facts:
    """Tokenise a shard and write its files into `folder`; `tokenizer` may be None if it holds token ids."""
    ids = _encode([piece.content for piece in shard.pieces], tokenizer)
    tokens, starts, counts = [], [], []
    for held_out in (False, True):
        part = [(piece, row) for piece, row in zip(shard.pieces, ids) if piece.held_out == held_out]
        at, begins = 0, []
        for piece, row in part:
            if piece.first and tokenizer is not None:
                tokens.append(np.asarray([tokenizer.end_of_text], np.int32))
                at += 1
            begins.append(at)
            tokens.append(row)
            at += len(row)
        # The end of the last one, as if another began there.
        starts.append(np.asarray([*begins, at + (tokenizer is not None)], np.uint32))
        counts.append((sum(piece.first for piece, _ in part), len(part), at))
    documents, pieces, total = zip(*counts)
    facts = Facts(documents, pieces, total, shard.characters, len(shard.bad), tuple(shard.bad[:5]))
    tokens = np.concatenate([np.zeros(0, np.int32), *tokens])
    small = tokenizer is not None and tokenizer.backend.get_vocab_size() <= 1 << 16
    tokens = tokens.astype(np.uint16 if small else np.int32)
    _put(folder / f"{shard.number:06}.npy", lambda file: np.save(file, tokens))
    _put(folder / f"{shard.number:06}.starts.npy", lambda file: np.save(file, np.concatenate(starts)))
    put_json(folder / f"{shard.number:06}.json", asdict(facts))
    return facts


def _encode(contents: list[Document], tokenizer) -> list[np.ndarray]:
    rows = {}
    kinds = ((Chat, lambda some: [np.asarray(ids, np.int32) for ids in tokenizer.encode_chats(some)]),)
    for kind, encode in (*kinds, (str, tokenizer and tokenizer.encode_documents)):
        numbers = [i for i, content in enumerate(contents) if type(content) is kind]
        rows |= zip(numbers, encode([contents[i] for i in numbers]) if numbers else [])
    return [rows.get(i, content) for i, content in enumerate(contents)]


def _put(path: Path, fill: Callable):
    """A file that is there whole or not at all, even if two processes write it at once."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.writing")
    try:
        with scratch.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def put_json(path: Path, facts: dict):
    _put(path, lambda file: file.write((json.dumps(facts) + "\n").encode()))


def facts_of(folder: Path, number: int) -> Facts | None:
    """The facts of a shard; None if it is not there."""
    try:
        facts = json.loads((folder / f"{number:06}.json").read_text())
    except FileNotFoundError:
        return None
    return Facts(**{name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()})


def count_of(folder: Path) -> int | None:
    """The number of shards of the text; None as long as its end was not reached."""
    path = folder / "end.json"
    return json.loads(path.read_text())["shards"] if path.exists() else None


# A file that is mapped stays open, and a process may open some hundred.
@lru_cache(maxsize=256)
def tokens_of(folder: Path, number: int) -> np.ndarray:
    """The token ids of a shard, mapped from its file."""
    return np.load(folder / f"{number:06}.npy", mmap_mode="r")


@lru_cache(maxsize=256)
def starts_of(folder: Path, number: int) -> np.ndarray:
    return np.load(folder / f"{number:06}.starts.npy")
