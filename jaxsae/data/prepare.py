"""Text becomes shards of tokens: in one pass, in several processes, as far as somebody asks.

What a shard holds is a function of the text and the tokenizer alone: where shards end is counted in characters, before
anything is tokenised. So each is written by whichever process comes first, on whichever host; one that is there is
never written again; and after a kill, or when a later run needs more, only those that are missing are tokenised. (The
text itself is read again from its beginning, which is fast beside tokenising.)

Every twentieth document is held out; of fewer than twenty the last; of one its last part.
"""

import hashlib
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxsae.data import shards, text
from jaxsae.data.records import Chat, Document
from jaxsae.data.shards import Facts, Piece, Shard
from jaxsae.data.workers import Workers, usable_cores
from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.lm.tokenizer import Tokenizer, pieces, render_chats

HELD_OUT_EVERY = 20
# Changing how documents become shards makes a new folder.
FORMAT = 2
# Characters of a shard, about a million tokens. A token id that is given counts as four.
SHARD = 4_000_000
# Seconds after which a file that was being written is one that a kill left.
STALE_S = 3600


def with_split(documents: Iterable[Document]) -> Iterator[tuple[Document, bool]]:
    """(document, whether it is held out) of each: every twentieth; of fewer the last; of one its last part."""
    documents = iter(documents)
    first = list(itertools.islice(documents, HELD_OUT_EVERY))
    if len(first) == 1:
        cut = len(first[0]) * (HELD_OUT_EVERY - 1) // HELD_OUT_EVERY
        kind = Chat if isinstance(first[0], Chat) else lambda part: part
        first = [kind(first[0][:cut]), kind(first[0][cut:])]
    if len(first) < HELD_OUT_EVERY:
        yield from ((document, i == len(first) - 1) for i, document in enumerate(first))
        return
    for i, document in enumerate(itertools.chain(first, documents)):
        yield document, i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def assemble(documents: Iterable[Document], bad: list[str], in_pieces: bool, size: int) -> Iterator[Shard]:
    """The shards of a text, of about `size` characters each. `bad` is emptied into the shard that comes next."""
    number, part, characters = 0, [], 0
    for document, held_out in with_split(documents):
        for piece, first in _parts(document, in_pieces, size):
            part.append(Piece(piece, first, held_out))
            characters += len(piece) if isinstance(piece, str) else 4 * len(piece)
            if characters >= size:
                yield Shard(number, part, characters, _taken(bad))
                number, part, characters = number + 1, [], 0
    if part or bad:
        yield Shard(number, part, characters, _taken(bad))


def _taken(bad: list[str]) -> list[str]:
    taken, bad[:] = list(bad), []
    return taken


def _parts(document: Document, in_pieces: bool, size: int) -> Iterator[tuple[Document, bool]]:
    """(part, is it the first) of a document, which is cut if it is long and if that does not show."""
    if isinstance(document, np.ndarray):
        parts = [document[i : i + size // 4] for i in range(0, len(document), size // 4)]
    else:
        parts = pieces(document, size) if in_pieces and not isinstance(document, Chat) else [document]
    return ((part, i == 0) for i, part in enumerate(parts))


@dataclass
class Text:
    """The tokens of a text, as far as they are there; `grow` makes more."""

    sources: Sequence[str]
    tokenizer: Tokenizer | None  # None: the sources hold token ids
    vocab_size: int | None  # of the model, for token ids
    root: Path
    limit: int | None = None  # documents
    skip_bad: bool = False
    processes: int | None = None
    shards: list[Facts] = field(default_factory=list)  # the first ones, as many as were asked for
    ended: bool = False  # whether they are all that the text has

    def __post_init__(self):
        self.fingerprint = text.fingerprint(self.sources)
        # Where shards end is part of what they are.
        parts = [FORMAT, HELD_OUT_EVERY, SHARD, self.fingerprint, self.limit]
        if self.tokenizer is None:
            parts += ["ids", self.vocab_size]
        else:
            parts += [self.tokenizer.fingerprint(), self.tokenizer.end_of_text, self.tokenizer.chat_template]
        self.folder = self.root / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]

    def grow(self, enough: Callable[[list[Facts]], bool] = lambda facts: False):
        """Tokenise on until the first shards are `enough`, or the text ends.

        Raises BadInput if the text cannot be used, or holds bad documents that are not to be skipped: then all else
        has been tokenised, and is kept.
        """
        before = sum(facts.bad for facts in self.shards)
        self._find(enough)
        if not self.ended and not enough(self.shards):
            self.shards, self.ended = self._make(enough, 0, 1)
        self._report_bad(before)

    def make_part(self, enough: Callable[[list[Facts]], bool], part: int, parts: int) -> tuple[int, bool]:
        """Tokenise every `parts`-th shard from number `part` (from 0) on, for several hosts that share the folder.

        Shards of the others that are not there yet count as much as those that are. Returns the number of shards of the
        text that were read, and whether all of them are there.
        """
        facts, ended = self._make(enough, part, parts)
        there = all(shards.facts_of(self.folder, number) for number in range(len(facts)))
        return len(facts), there and (ended or enough(facts))

    def _find(self, enough):
        """Add the shards that are there already, as long as they are not enough."""
        count = shards.count_of(self.folder)
        while len(self.shards) != count and not enough(self.shards):
            facts = shards.facts_of(self.folder, len(self.shards))
            if facts is None:
                return
            self.shards.append(facts)
        self.ended = len(self.shards) == count

    def _make(self, enough, part: int, parts: int) -> tuple[list[Facts], bool]:
        """The facts of the shards until they are `enough`, and whether the text ended there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _tidy(self.folder)
        facts, waiting, bad = [], deque(), []
        quiet = not processes.is_primary()
        bar = tqdm(desc="tokenising", unit="tok", unit_scale=True, leave=False, mininterval=1, disable=quiet)
        count = usable_cores() if self.processes is None else self.processes

        def collect():
            wait, new = waiting.popleft()
            facts.append(wait())
            bar.update(sum(facts[-1].tokens) if new else 0)

        with bar, _Later(lambda: Workers(count, self.folder, self.tokenizer)) as workers:
            for shard, last in _with_last(self._assembled(bad)):
                waiting.append(self._task(shard, last, facts, shard.number % parts == part, workers))
                while waiting and len(waiting) > (count + 2 if count > 1 else 0):
                    collect()
                if enough(facts):
                    return facts, False
            while waiting:
                collect()
                if waiting and enough(facts):
                    return facts, False
            shards.put_json(self.folder / "end.json", {"shards": len(facts)})
            return facts, True

    def _task(self, shard: Shard, last: bool, facts: list[Facts], mine: bool, workers) -> tuple[Callable, bool]:
        """What waits for the facts of a shard, and whether it is made for that; `facts` are those before it."""
        there = shards.facts_of(self.folder, shard.number)
        if there is not None:
            return lambda: there, False
        if not mine:
            return lambda: _like(facts, shard.characters), False
        if last and workers.made is None:
            # Not worth a process.
            return lambda: shards.write(self.folder, shard, self.tokenizer), True
        return workers().submit(shard), True

    def _assembled(self, bad: list[str]) -> Iterator[Shard]:
        noted = []

        def note(reason: str):
            bad.append(reason)
            if not noted and not self.skip_bad and processes.is_primary():
                print(f"jaxsae: {reason}; tokenising goes on, to find all of these", file=sys.stderr)
            noted.append(reason)

        render = None
        if self.tokenizer is not None:
            render = _first_used(lambda: render_chats(self.tokenizer))
        documents = text.documents(self.sources, note, render, self.vocab_size)
        in_pieces = self.tokenizer is not None and self.tokenizer.in_pieces
        return assemble(itertools.islice(documents, self.limit), bad, in_pieces, SHARD)

    def _report_bad(self, before: int):
        total = sum(facts.bad for facts in self.shards)
        if total == before:
            return
        first = list(itertools.islice((reason for facts in self.shards for reason in facts.first_bad), 3))
        documents = sum(sum(facts.documents) for facts in self.shards)
        message = f"{total} of {documents + total} documents cannot be read: {'; '.join(first)}"
        if total > len(first):
            message += f"; and {total - len(first)} more"
        if not self.skip_bad:
            raise BadInput(
                f"{message}. Mend them, or leave them out with --bad-documents skip: the others are tokenised already"
            )
        if processes.is_primary():
            print(f"jaxsae: left out, {message}", file=sys.stderr)


class _Later:
    """A context that is entered when it is first asked for."""

    def __init__(self, make: Callable):
        self.make, self.made = make, None

    def __enter__(self):
        return self

    def __call__(self):
        if self.made is None:
            self.made = self.make().__enter__()
        return self.made

    def __exit__(self, *error):
        if self.made is not None:
            self.made.__exit__(*error)


def _first_used(make: Callable[[], Callable]) -> Callable:
    """A function that is made when it is first called."""
    made = []

    def call(argument):
        made.extend([] if made else [make()])
        return made[0](argument)

    return call


def _with_last(items: Iterable) -> Iterator[tuple]:
    """(item, is it the last) of each."""
    items = iter(items)
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        yield item, following is None
        item = following


def _like(facts: list[Facts], characters: int) -> Facts:
    """What a shard of so many characters has, by those that are known."""
    known = sum(f.characters for f in facts)
    share = characters / known if known else 0
    mean = lambda name: tuple(int(share * sum(getattr(f, name)[i] for f in facts)) for i in (0, 1))
    return Facts(mean("documents"), mean("pieces"), mean("tokens"), characters)


def _tidy(folder: Path):
    """Remove what a kill left."""
    for path in folder.glob(".*.writing"):
        try:
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
        except FileNotFoundError:
            pass
