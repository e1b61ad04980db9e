"""Tokenised text on disk: contexts of T tokens, written once, read at random.

The tokenizer packs documents into contexts [T]; every twentieth document is held out. The result is a
tensorflow-datasets dataset in ArrayRecord files, under a cache folder, in a folder named by a fingerprint of text,
tokenizer and T: the same input is tokenised once.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxsae.data import text
from jaxsae.distributed import processes
from jaxsae.errors import BadInput

HELD_OUT_EVERY = 20
# Changing how documents become contexts makes a new folder.
FORMAT = 1


def default_cache() -> str:
    """Where tokenised text is kept: $JAXSAE_CACHE, else jaxsae under $XDG_CACHE_HOME, else ~/.cache/jaxsae."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.environ.get("JAXSAE_CACHE") or str(Path(base).expanduser() / "jaxsae")


def fingerprint(sources: Sequence[str], tokenizer, context: int, limit: int | None = None) -> str:
    """Names the dataset that `prepare` writes for these."""
    parts = [FORMAT, HELD_OUT_EVERY, text.fingerprint(sources), tokenizer.fingerprint(), tokenizer.end_of_text, context]
    parts += [] if limit is None else [limit]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def prepare(
    sources: Sequence[str], tokenizer, context: int, cache: str | None = None, limit: int | None = None
) -> Path:
    """The folder of the dataset of `sources` (of their first `limit` documents), written if it is not there.

    Raises BadInput if the text cannot be used.
    """
    root = Path(cache or default_cache()) / "tokens"
    folder = root / fingerprint(sources, tokenizer, context, limit)
    if folder.exists():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed at the end: a folder that is there is whole, whoever else was writing it.
    # (Not by tempfile, whose folders nobody else may read.)
    scratch = root / f"writing-{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        _write(scratch, sources, tokenizer, context, limit)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _write(folder: Path, sources, tokenizer, context: int, limit: int | None):
    import tensorflow_datasets as tfds

    from jaxsae.data.builder import Contexts

    quiet = not processes.is_primary()
    bar = tqdm(desc="tokenising", unit="tok", unit_scale=True, leave=False, mininterval=1, disable=quiet)

    def documents():
        return itertools.islice(text.documents(sources), limit)

    def examples(split: str) -> Iterator[np.ndarray]:
        empty = True
        for tokens in tokenizer.pack(split_documents(documents(), split), context):
            empty = False
            bar.update(context)
            yield tokens
        # Raised here because tfds fails with an assertion of its own where a split is empty.
        if empty:
            raise BadInput(
                f"the text {' '.join(sources)} is too short: its {split.replace('_', '-')} part does not fill one "
                f"context of {context} tokens; give more text or a smaller --context"
            )

    # tfds prints several lines and bars of its own.
    tfds.disable_progress_bar()
    try:
        with bar, contextlib.redirect_stdout(io.StringIO()):
            Contexts(data_dir=folder, context=context, examples=examples).download_and_prepare()
    finally:
        tfds.enable_progress_bar()


def split_documents(documents: Iterable[str], split: str) -> Iterator[str]:
    """The documents of one split: every twentieth is held out; of fewer than twenty the last; of one its last part."""
    documents = iter(documents)
    first = list(itertools.islice(documents, HELD_OUT_EVERY))
    if len(first) == 1:
        cut = len(first[0]) * (HELD_OUT_EVERY - 1) // HELD_OUT_EVERY
        first = [first[0][:cut], first[0][cut:]]
    if len(first) < HELD_OUT_EVERY:
        yield from first[:-1] if split == "train" else first[-1:]
        return
    for i, document in enumerate(itertools.chain(first, documents)):
        if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == (split == "held_out"):
            yield document


class TokenContexts:
    """One split of a prepared dataset, in a shuffled order that is a pure function of the index, repeated for ever.

    A split is "train", "held_out", or "all" of the text.
    """

    def __init__(self, folder: Path, split: str, seed: int | None):
        """`seed` None keeps the order of the text."""
        import grain
        import tensorflow_datasets as tfds

        self.source = tfds.builder_from_directory(next(Path(folder).glob("contexts/*"))).as_data_source(
            "train+held_out" if split == "all" else split
        )
        order = grain.MapDataset.range(len(self.source))
        # shuffle(seed=s) gives epoch e the order of s + e, so that neighbouring seeds share epochs; seed(s) does not.
        self.order = order if seed is None else order.seed(seed).shuffle().repeat()

    def __len__(self):
        return len(self.source)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Contexts number `start` to `stop` of the order, int32 [stop - start, T]."""
        rows = [int(self.order[i]) for i in range(start, stop)]
        return np.stack([row["tokens"] for row in self.source.__getitems__(rows)]).astype(np.int32)
