"""What becomes of one record of a text source: a document, which is a text or token ids, or a record that is bad."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsae.errors import BadInput

# Columns that hold token ids by convention, where none is named.
ID_COLUMNS = ("input_ids", "tokens")


class Chat(str):
    """A document whose special tokens, written by a chat template, are tokens."""


Document = str | np.ndarray  # token ids are int32 [N]


@dataclass(frozen=True)
class Bad:
    """A record that cannot be read, or the rest of a file that cannot; `reason` names the place."""

    reason: str


class Damaged(BadInput):
    """A file that cannot be read to its end."""


@dataclass(frozen=True)
class Reading:
    """What is read of each record."""

    column: str | None = None
    """Of tables; default: "text", or that of ID_COLUMNS which is there."""
    vocab_size: int | None = None
    """If token ids are read: how many there are."""
    render: Callable[[list], str] | None = None
    """Makes one text of the messages of a chat; raises ValueError for what is no chat."""

    @property
    def kind(self) -> str:
        return "a string" if self.vocab_size is None else "a list of token ids"

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that may be read, the first that is there."""
        return (self.column,) if self.column else ("text",) if self.vocab_size is None else ID_COLUMNS

    def choose(self, columns: Iterable[str], shown: str) -> str:
        """The column to read. Raises BadInput, which lists the columns, if it is missing."""
        columns = list(columns)
        for name in self.names:
            if name in columns:
                return name
        wanted = " or ".join(f'"{name}"' for name in self.names)
        raise BadInput(
            f"{shown} has no column {wanted}, only {', '.join(map(str, columns))}: name the one to read as #COLUMN"
        )

    def document(self, value: Any, place: str, rule: str) -> Document | Bad:
        """A value of the column as a document; `place` says where it stands, `rule` what should stand there.

        Raises BadInput for token ids outside of the vocabulary: they are another model's.
        """
        bad = Bad(f"{place}: {rule} that is {self.kind}")
        if self.vocab_size is not None:
            return _ids(value, self.vocab_size, place) if _is_ids(value) else bad
        if isinstance(value, list | tuple | np.ndarray) and self.render is not None and len(value):
            try:
                return Chat(self.render(list(value)))
            except ValueError as error:
                return Bad(f"{place}: {error}")
        if not isinstance(value, str):
            return bad
        # JSON can name half a character, which no tokenizer takes.
        return bad if not_utf8(value) else value


def not_utf8(text: str) -> str | None:
    """What is wrong with a text that was decoded with surrogateescape; None if nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        return f"not UTF-8 text (it holds the byte {code & 0xFF:#04x}): convert it first"
    return None


def _is_ids(value) -> bool:
    try:
        ids = np.asarray(value)
    except (ValueError, TypeError):  # lists of unequal lengths
        return False
    return ids.ndim == 1 and (ids.size == 0 or np.issubdtype(ids.dtype, np.integer))


def _ids(value, vocab_size: int, place: str) -> np.ndarray:
    ids = np.asarray(value)
    if ids.size and not (0 <= ids.min() and ids.max() < vocab_size):
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise BadInput(
            f"{place} holds token id {wrong}, but the model's vocabulary has {vocab_size} entries, 0 to "
            f"{vocab_size - 1}: give ids of this model's tokenizer"
        )
    return ids.astype(np.int32)
