"""The rows of the evaluation `agreement` as token ids: P distinct prefixes, T positions, R rows."""

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm.tokenizer import Tokenizer

FIELDS = ("clean_prefix", "clean_answer", "patch_answer")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """Rows as token ids; int32 arrays."""

    tokens: Any  # [P, T] end of text, the prefix, and end of text after it; the shortest prefixes first
    slots: Any  # [P, T] which word of the prefix a token belongs to, -1 for end of text
    last: Any  # [P] the position of a prefix's last token
    row: Any  # [R] the prefix of each row
    right: Any  # [R] first token of its right answer, as an index into `answers`
    wrong: Any  # [R] and of its wrong one
    answers: Any  # [V] the distinct first tokens of all answers
    kept: Any = None  # [P, T] bool, where reconstructions are put in; everywhere if None


def read(path: str | Path, limit: int | None = None) -> list[dict]:
    """The first `limit` rows of a file of JSON lines, each with at least FIELDS. Raises BadInput for other files."""
    rows = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(itertools.islice(lines, limit), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in FIELDS):
                raise BadInput(f"{path}, line {number}, is not a pair: it needs texts called {', '.join(FIELDS)}")
            rows.append(row)
    return rows


def tokenise(rows: list[dict], tokenizer: Tokenizer) -> tuple[Pairs, dict[str, int]]:
    """Rows as token ids, and how many were dropped for which reason.

    Dropped are rows whose answers begin with the same token (their number would always be 0) and rows whose text the
    vocabulary cannot say. A template's slots are the words of its prefixes; a word of several tokens has all of them
    in its slot, as in the paper's code.
    """
    kept, dropped = [], Counter()
    for row in rows:
        text, *answers = (row[name] for name in FIELDS)
        first = [ids[:1] for ids in tokenizer.encode(answers)]
        words = _words(tokenizer, text)
        if words is None or not all(_comes_back(tokenizer, answer) for answer in answers):
            dropped["not in the vocabulary"] += 1
        elif first[0] == first[1]:
            dropped["answers begin alike"] += 1
        else:
            kept.append((words, *first[0], *first[1]))
    if not kept:
        raise BadInput(f"none of {len(rows)} rows can be used: {dict(dropped) or 'there are none'}")
    words, right, wrong = zip(*kept)
    # Distinct prefixes, the shortest first; those of one length in the order of their tokens.
    prefixes = sorted(set(words), key=lambda words: (sum(map(len, words)), words))
    lengths = [1 + sum(map(len, words)) for words in prefixes]
    tokens = np.full((len(prefixes), lengths[-1]), tokenizer.end_of_text, np.int32)
    slots = np.full_like(tokens, -1)
    for i, (words_of_i, length) in enumerate(zip(prefixes, lengths)):
        tokens[i, 1:length] = [*itertools.chain(*words_of_i)]
        slots[i, 1:length] = np.repeat(np.arange(len(words_of_i)), [*map(len, words_of_i)])
    answers, at = np.unique([right, wrong], return_inverse=True)
    right, wrong = at.reshape(2, -1).astype(np.int32)
    number = {words: i for i, words in enumerate(prefixes)}
    row = np.array([number[w] for w in words], np.int32)
    last = np.array(lengths, np.int32) - 1
    return Pairs(tokens, slots, last, row, right, wrong, answers.astype(np.int32)), dict(dropped)


def fill(pairs: Pairs, multiple: int) -> Pairs:
    """The same rows; copies of the first prefix, which no row has and which has no slots, make P a multiple."""
    extra = -len(pairs.tokens) % multiple
    repeat = lambda a: np.concatenate([a, np.repeat(a[:1], extra, axis=0)])
    slots = np.concatenate([pairs.slots, np.full((extra, pairs.slots.shape[1]), -1, np.int32)])
    kept = None if pairs.kept is None else repeat(pairs.kept)
    fields = pairs.row, pairs.right, pairs.wrong, pairs.answers, kept
    return Pairs(repeat(pairs.tokens), slots, repeat(pairs.last), *fields)


def _words(tokenizer: Tokenizer, text: str) -> tuple[tuple[int, ...], ...] | None:
    """The tokens of each word; None if the tokenizer does not cut the text at words, or cannot say it."""
    first, *rest = text.split(" ")
    words = tokenizer.encode([first, *(f" {word}" for word in rest)])
    cut = [*itertools.chain(*words)] == tokenizer.encode([text])[0]
    return tuple(map(tuple, words)) if cut and _comes_back(tokenizer, text) else None


def _comes_back(tokenizer: Tokenizer, text: str) -> bool:
    return bool(text) and tokenizer.decode(tokenizer.encode([text])[0]) == text
