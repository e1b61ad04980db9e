"""The tokenizer that belongs to a language model, and how documents become its contexts. b texts, T tokens.

A tokenizer says its own packing: what begins every context (`bos`), what stands between documents (`end_of_text`), and
whether a long document may be encoded piece by piece (`in_pieces`).
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from jaxsae.errors import BadInput
from jaxsae.lm.model import LM

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Tokenizer:
    backend: tokenizers.Tokenizer
    end_of_text: int
    name: str
    bos: int | None = None
    """The token at the start of every context, if the model was trained with one."""
    in_pieces: bool = False
    """Whether text that is cut before a single space between two letters encodes to the same tokens."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; no special tokens are added."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def fingerprint(self) -> str:
        """A text that differs if `encode` or `pack` would."""
        text = self.backend.to_str()
        return text if self.in_pieces and self.bos is None else json.dumps([text, self.bos, self.in_pieces])

    def pad(self, texts: list[str], side: str = "right") -> tuple[np.ndarray, np.ndarray]:
        return pad(self, texts, side)

    def pack(self, documents: Iterable[str], context: int) -> Iterator[np.ndarray]:
        return pack(self, documents, context)


def pad(tokenizer: Tokenizer, texts: list[str], side: str = "right") -> tuple[np.ndarray, np.ndarray]:
    """The texts as one array: token ids int32 [b, T], and the mask bool [b, T], True at real tokens.

    T is the length of the longest text; the others are filled up with end-of-text tokens on the `side` left or right.
    Each begins with the token that begins every context, if the model has one.

        tokens, mask = tokenizer.pad(["A short text.", "A text that is longer."])
        stream = lm.prefix(tokens, hook, mask)
    """
    if side not in ("left", "right"):
        raise BadInput(f"padding is on the left or the right, not {side!r}")
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    rows = [start + ids for ids in tokenizer.encode(texts)]
    shape = len(rows), max(map(len, rows), default=0)
    tokens, mask = np.full(shape, tokenizer.end_of_text, np.int32), np.zeros(shape, bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(shape[1] - len(row), None)
        tokens[i, place], mask[i, place] = row, True
    return tokens, mask


def pack(tokenizer: Tokenizer, documents: Iterable[str], context: int) -> Iterator[np.ndarray]:
    """Documents, each after an end-of-text token, joined and cut into int32 contexts [T], T = `context`.

    Each context begins with the token that begins every context, if the model has one. What is left at the end is
    dropped.
    """
    start = np.asarray([] if tokenizer.bos is None else [tokenizer.bos], np.int32)
    end = np.asarray([tokenizer.end_of_text], np.int32)
    text, rest = context - len(start), np.zeros(0, np.int32)
    if text < 1:
        raise BadInput(f"a context of {context} tokens has no room for text after the token that begins it")
    for batch in _batches(documents, tokenizer.in_pieces):
        ids = tokenizer.encode([piece for piece, _ in batch])
        pieces = [rest]
        for tokens, (_, first) in zip(ids, batch):
            pieces += [end] if first else []
            pieces.append(np.asarray(tokens, np.int32))
        stream = np.concatenate(pieces)
        whole = len(stream) // text * text
        for row in stream[:whole].reshape(-1, text):
            yield np.concatenate([start, row])
        rest = stream[whole:]


def _batches(
    documents: Iterable[str], in_pieces: bool, characters: int = 2_000_000
) -> Iterator[list[tuple[str, bool]]]:
    """Lists of (piece, is it the first of its document), each list of about so many characters."""
    batch, size = [], 0
    for document in documents:
        for number, piece in enumerate(_pieces(document) if in_pieces else [document]):
            batch.append((piece, number == 0))
            size += len(piece)
            if size >= characters:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(document: str, characters: int = 20_000) -> Iterator[str]:
    """A long document in pieces, which are encoded in parallel, several times faster than the whole.

    Cuts are before a single space between two letters, where GPT-2's pre-tokenizer always begins a new word.
    """
    start = 0
    while len(document) - start > 2 * characters:
        stop = start + characters
        while stop < len(document) - 1 and not (
            document[stop] == " " and document[stop - 1].isalpha() and document[stop + 1].isalpha()
        ):
            stop += 1
        if stop >= len(document) - 1:
            break
        yield document[start:stop]
        start = stop
    yield document[start:]


def load_tokenizer(lm: LM) -> Tokenizer:
    """The tokenizer in the folder that `lm` was loaded from. Raises BadInput if there is none or it does not fit."""
    if lm.folder is None:
        raise BadInput("this model was not loaded from a folder, so it has no tokenizer: give token ids")
    folder = Path(lm.folder)
    has = lambda *names: all((folder / name).is_file() for name in names)
    if not has("tokenizer.json") and not has("vocab.json", "merges.txt"):
        raise BadInput(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt), and text input needs one"
        )
    try:
        tokenizer = (_from_json if has("tokenizer.json") else _from_vocabulary)(folder)
    except BadInput:
        raise
    except Exception as error:  # whatever transformers, tokenizers and json raise for missing or broken files
        raise BadInput(
            f"the tokenizer in {folder} (tokenizer.json, or vocab.json and merges.txt) does not load: {error}"
        ) from error
    largest = max(tokenizer.backend.get_vocab().values(), default=-1)
    if not 0 <= largest < lm.config.vocab_size:
        raise BadInput(
            f"the tokenizer in {folder} has ids up to {largest}, but the model's vocabulary has "
            f"{lm.config.vocab_size} entries: they do not belong together"
        )
    return tokenizer


def _from_json(folder: Path) -> Tokenizer:
    """From tokenizer.json, without transformers, whose import takes two seconds."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    if backend.post_processor is None:
        # It does nothing. transformers puts it here, and fingerprints do not depend on who reads the file.
        backend.post_processor = tokenizers.processors.TemplateProcessing("$A", "$A $B:1", [])
    about = folder / "tokenizer_config.json"
    return make_tokenizer(backend, str(folder), json.loads(about.read_text()) if about.is_file() else {})


def _from_vocabulary(folder: Path) -> Tokenizer:
    """From any other files, as transformers reads them."""
    # Without this, transformers complains on import that PyTorch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not slow.is_fast:
        raise BadInput(f"the tokenizer in {folder} is a slow one: save its tokenizer.json there")
    return make_tokenizer(slow.backend_tokenizer, str(folder), {"eos_token": slow.eos_token})


def make_tokenizer(backend: tokenizers.Tokenizer, name: str, about: dict = {}) -> Tokenizer:
    """The record of a tokenizer: its own files say how it packs; `about` is the dict of tokenizer_config.json."""
    vocabulary = backend.get_vocab()
    end = vocabulary.get(END_OF_TEXT, vocabulary.get(_content(about.get("eos_token"))))
    if end is None:
        raise BadInput(f"the tokenizer in {name} has neither {END_OF_TEXT} nor an end-of-sequence token")
    return Tokenizer(backend, end, name, _bos(backend, about), _in_pieces(json.loads(backend.to_str())))


def _content(token) -> str | None:
    """The text of a token of tokenizer_config.json, which is a string or an object."""
    return token.get("content") if isinstance(token, dict) else token


def _bos(backend: tokenizers.Tokenizer, about: dict) -> int | None:
    """The token to begin contexts with: what the tokenizer is set up to put before a text, None if nothing."""
    if "add_bos_token" in about:
        return backend.token_to_id(_content(about["bos_token"])) if about["add_bos_token"] else None
    encoding = backend.encode("a")
    special = encoding.special_tokens_mask[:1] == [1] and encoding.offsets[0] == (0, 0)
    return encoding.ids[0] if special else None


def _in_pieces(facts: dict) -> bool:
    """Whether cuts before a single space between letters do not show, from the dict of tokenizer.json.

    They do not if the text goes as it is to GPT-2's pre-tokenizer, and no added token has or takes a space.
    """
    words = facts["pre_tokenizer"] or {}
    spaced = any(" " in t["content"] or t["lstrip"] or t["rstrip"] for t in facts["added_tokens"])
    return (
        facts["normalizer"] is None and words.get("type") == "ByteLevel" and words.get("use_regex", True) and not spaced
    )
