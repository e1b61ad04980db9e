"""Contexts of T tokens of a text, read at random from the shards that prepare.py writes.

What a run reads is fixed by its own configuration and the text, and does not depend on how much is prepared: that only
says how long it waits. `need` says how many tokens a run reads of a part ("train", "held_out", or "all"). The order in
which it reads is

- if the text has less: all of its contexts, shuffled, again and again, each time in another order;
- else window by window: the contexts of the first WINDOW shards shuffled, then those of the next, so that the text is
  tokenised only as far as it is read, and a run that is resumed for longer goes on where it was. (A text of one window
  is read in the same order either way.) If the text ends, it is read again, each window in another order.

Every context is known by its index in this order, whatever was read before; a read beyond what is prepared tokenises
what is missing. `len` is the number of contexts that are read before the order repeats, as far as the run needs to
know: all of the text in the first case, in the second those that hold `need` tokens, or the first window.

Packing is done in reading, so the same shards serve every context length. With `--pack stream` the documents of a part
are joined and cut every T tokens; what is left at the end is dropped. With `--pack documents` each document begins a
context and is cut every T tokens, and what is missing at the end of its last context is filled up with -1. With `bos`,
every context begins with that token, so that T - 1 are of the text.
"""

import hashlib
import json
import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from jaxsae.data import text
from jaxsae.data.packing import Packing
from jaxsae.data.prepare import HELD_OUT_EVERY as HELD_OUT_EVERY
from jaxsae.data.prepare import Text
from jaxsae.data.shards import SPLITS, Facts
from jaxsae.errors import BadInput

# Shards whose contexts are shuffled together.
WINDOW = 8


def default_cache() -> str:
    """Where tokenised text is kept: $JAXSAE_CACHE, else jaxsae under $XDG_CACHE_HOME, else ~/.cache/jaxsae."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.environ.get("JAXSAE_CACHE") or str(Path(base).expanduser() / "jaxsae")


@dataclass
class Prepared:
    """A text that is tokenised as far as it is needed."""

    text: Text
    packing: Packing
    need: Mapping[str, int | None] = field(default_factory=dict)
    """Tokens that are read of each part; None, and a part that is not there: all that there are."""

    @property
    def fingerprint(self) -> str:
        """Changes with the text, the tokenizer, and how documents become contexts."""
        parts = [self.text.folder.name, self.packing.context, self.packing.bos, self.packing.documents]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]

    @property
    def facts(self) -> dict:
        """What is known of the text: the documents and tokens of its two parts that were tokenised for `need`, and
        whether they are all of it.
        """
        known = self.text.shards
        total = lambda name: sum(sum(getattr(facts, name)) for facts in known)
        return {
            "text_documents": total("documents"),
            "text_tokens": total("tokens"),
            "text_ended": self.text.ended,
            "text_bad_documents": sum(facts.bad for facts in known),
        }

    def counts(self, split: str) -> np.ndarray:
        """The contexts of a part up to the end of each shard that is known, [shards]."""
        return self._counts(split, self.text.shards)

    def _counts(self, split: str, facts: Sequence[Facts]) -> np.ndarray:
        parts = SPLITS if split == "all" else (split,)
        return sum(self.packing.ends(self.text.folder, facts, part) for part in parts)

    def contexts(self, split: str, facts: Sequence[Facts] | None = None) -> int | None:
        """The contexts that hold the tokens that are needed of a part, by the first window; None: all."""
        tokens, folder = self.need.get(split), self.text.folder
        first = (self.text.shards if facts is None else facts)[:WINDOW]
        part = "train" if split == "all" else split
        return tokens and math.ceil(tokens / self.packing.tokens_each(folder, first, part))

    def grow(self, contexts: Mapping[str, int] | None = None):
        """Tokenise until whole windows have what is needed of each part, or so many `contexts`, or the text ends."""
        self.text.grow(partial(self._enough, contexts))

    def make_part(self, part: int, parts: int) -> tuple[int, bool]:
        """Tokenise one of `parts` equal parts of what is needed: see Text.make_part."""
        return self.text.make_part(partial(self._enough, None), part, parts)

    def _enough(self, contexts: Mapping[str, int] | None, facts: list[Facts]) -> bool:
        if not facts or len(facts) % WINDOW or (contexts is None and None in self.need.values()):
            return False
        if contexts is None:
            contexts = {split: self.contexts(split, facts) for split in self.need}
        return all(self._counts(split, facts)[-1] >= count for split, count in contexts.items())

    def check(self, split: str):
        """Raises BadInput if a part that is asked for holds no context."""
        counts = self.counts(split)
        if not len(counts) or counts[-1] == 0:
            part = "it" if split == "all" else f"its {split.replace('_', '-')} part"
            raise BadInput(
                f"the text {' '.join(self.text.sources)} is too short: {part} does not fill one context of "
                f"{self.packing.context} tokens; give more text or a smaller --context"
            )


def open_text(
    sources: Sequence[str],
    tokenizer,
    context: int,
    cache: str | None = None,
    limit: int | None = None,
    need: Mapping[str, int | None] | None = None,
    *,
    vocab_size: int | None = None,
    bos: bool = False,
    pack: str = "stream",
    processes: int | None = None,
    bad_documents: str = "fail",
) -> Prepared:
    """The `sources` (their first `limit` documents), before anything is tokenised.

    `need` says how many tokens will be read of which part, {part: tokens, or None for all}; by default, all of both.
    `tokenizer` may be None if they hold token ids, of a model with `vocab_size` entries. With `bos`, contexts begin
    with the tokenizer's `start` token, else with its `bos` if it has one; token ids stand as they are given, but for an
    explicit `bos`. The other arguments are those of DataConfig.

    Raises BadInput for sources that are not there.
    """
    need = {"train": None, "held_out": None} if need is None else need
    ids = text.are_ids(sources)
    if tokenizer is None and (bos or not ids):
        raise BadInput(f"{'--bos' if bos else 'text input'} needs the model's tokenizer, and there is none")
    start = tokenizer.start if bos else None if ids else tokenizer.bos
    packing = Packing(context, start, pack == "documents", 0 if ids else 1)
    root = Path(cache or default_cache()) / "tokens"
    skip_bad = bad_documents == "skip"
    read = Text(tuple(sources), None if ids else tokenizer, vocab_size, root, limit, skip_bad, processes)
    return Prepared(read, packing, need)


def tokenised(prepared: Prepared) -> Prepared:
    """A text that was opened, tokenised as far as it is needed.

    Raises BadInput if the text cannot be used, or if a part that is needed does not fill one context.
    """
    prepared.grow()
    for split in prepared.need:
        prepared.check(split)
    return prepared


def prepare(*arguments, **options) -> Prepared:
    """Open a text as `open_text` does, and tokenise it as far as it is needed."""
    return tokenised(open_text(*arguments, **options))


@dataclass(frozen=True)
class Window:
    """Contexts that are shuffled together: of each part those from number a to b of the text's order."""

    start: int  # index of the first one in the order
    parts: tuple[tuple[str, int, int], ...]

    def __len__(self):
        return sum(b - a for _, a, b in self.parts)

    def at(self, index: int) -> tuple[str, int]:
        """(part, number) of the context number `index` of the window."""
        for split, a, b in self.parts:
            if index < b - a:
                return split, a + index
            index -= b - a
        raise IndexError(index)


class TokenContexts:
    """One part of a prepared text, in a shuffled order that is a pure function of the index, repeated for ever.

    A part is "train", "held_out", or "all" of the text. `padded` says whether contexts may hold NOTHING.
    """

    def __init__(self, prepared: Prepared, split: str, seed: int | None):
        """`seed` None keeps the order of the text. Of a part that `prepared` has no need of, all is read."""
        # Here, because reading goes on in another thread.
        import grain

        self.dataset = grain.MapDataset
        self.split, self.seed, self.padded = split, seed, prepared.packing.documents
        self.splits = SPLITS if split == "all" else (split,)
        self.orders = {}
        if split not in prepared.need:
            prepared = replace(prepared, need={split: None})
            prepared.grow()
        self.prepared = prepared
        prepared.check(split)
        self.need, counts = prepared.contexts(split), prepared.counts(split)
        # The text is read whole if it has less than is needed; else there is no need to know how much it has.
        self.whole = self.need is None or counts[-1] < self.need
        self.windows: list[Window] = []
        self._see()

    def _window(self, first: int, stop: int) -> Window:
        parts = []
        for split in self.splits:
            ends = self.prepared.packing.ends(self.prepared.text.folder, self.prepared.text.shards[:stop], split)
            parts.append((split, int(ends[first - 1]) if first else 0, int(ends[-1])))
        start = self.windows[-1].start + len(self.windows[-1]) if first else 0
        return Window(start, tuple(parts))

    @property
    def order_name(self) -> str:
        """What else the order depends on, but for the text, the packing and the seed: two runs that agree in it read
        the same contexts.
        """
        ended = self.prepared.text.ended
        one = len(self.windows) == 1 and ended
        return f"all {len(self.windows[0])} contexts" if self.whole or one else f"windows of {WINDOW} shards"

    def _see(self):
        """Add the windows that are known in full."""
        if self.whole:
            self.windows = [self._window(0, len(self.prepared.text.shards))]
            return
        known, ended = len(self.prepared.text.shards), self.prepared.text.ended
        while (first := len(self.windows) * WINDOW) < known and (ended or first + WINDOW <= known):
            self.windows.append(self._window(first, min(first + WINDOW, known)))

    @property
    def _known(self) -> int:
        return self.windows[-1].start + len(self.windows[-1])

    def __len__(self):
        return len(self.windows[0]) if self.whole else max(self.need, len(self.windows[0]))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Contexts number `start` to `stop` of the order, int32 [stop - start, T]."""
        if not self.whole and stop > self._known and not self.prepared.text.ended:
            self.prepared.grow({self.split: stop})
            self._see()
        places = [self._place(index) for index in range(start, stop)]
        out = np.zeros((stop - start, self.prepared.packing.context), np.int32)
        for split in self.splits:
            rows = [i for i, (part, _) in enumerate(places) if part == split]
            text = self.prepared.text
            out[rows] = self.prepared.packing.rows(text.folder, text.shards, split, [places[i][1] for i in rows])
        return out

    def _place(self, index: int) -> tuple[str, int]:
        """(part, number) of the context at an index of the order."""
        epoch, index = divmod(index, self._known) if self.whole or self.prepared.text.ended else (0, index)
        number = bisect_right(self.windows, index, key=lambda window: window.start) - 1
        window = self.windows[number]
        index -= window.start
        if self.seed is not None:
            index = int(self._shuffled(number)[epoch * len(window) + index])
        return window.at(index)

    def _shuffled(self, number: int):
        if number not in self.orders:
            # shuffle(seed=s) gives epoch e the order of s + e, so that neighbouring seeds share epochs; seed(s) does
            # not.
            seed = int(hashlib.sha256(f"{self.seed} {number}".encode()).hexdigest()[:8], 16) if number else self.seed
            order = self.dataset.range(len(self.windows[number])).seed(seed).shuffle().repeat()
            self.orders[number] = order
        return self.orders[number]
