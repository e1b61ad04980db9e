"""The tokenizer that belongs to a language model. b texts, T tokens.

A tokenizer says its own packing: what begins every context (`bos`), what stands between documents (`end_of_text`), and
whether a long document may be encoded piece by piece (`in_pieces`). Special tokens come from the program alone: one
that is written in a text is encoded as the characters that it is written with.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers

from jaxsae.errors import BadInput

if TYPE_CHECKING:  # worker processes that only tokenise do without JAX
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
    start: int | None = None
    """The token that --bos puts at the start of every context: `bos`, else the beginning-of-sequence token that the
    tokenizer names but does not use, else the end-of-text token (GPT-2, as in TransformerLens)."""
    vocab_size: int | None = None
    """Entries of the model's vocabulary, if the tokenizer has more: then `encode` refuses an id behind them."""
    chat_template: str | None = None
    """The Jinja template that makes one text of the messages of a chat."""

    def __post_init__(self):
        # A special token that is written in a text is ordinary text; the library would take it for the token itself.
        self.backend.encode_special_tokens = True

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text. No special tokens are added, and none is read from the text.

        Raises BadInput if an id does not belong to the model's vocabulary.
        """
        rows = [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        if self.vocab_size is not None:
            largest = max((max(ids, default=0) for ids in rows), default=0)
            if largest >= self.vocab_size:
                raise BadInput(
                    f"the text holds {self.backend.id_to_token(largest)!r}, token {largest} of the tokenizer in "
                    f"{self.name}, but the model's vocabulary has {self.vocab_size} entries: leave it out of the text"
                )
        return rows

    def encode_chats(self, texts: list[str]) -> list[list[int]]:
        """Token ids of chats as `render_chats` gives them: there the special tokens are what they say.

        A template that begins a chat with `bos` does so for a text that stands alone: here contexts begin with it.
        """
        self.backend.encode_special_tokens = False
        try:
            rows = self.encode(texts)
        finally:
            self.backend.encode_special_tokens = True
        return [ids[1:] if ids and ids[0] == self.bos else ids for ids in rows]

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        """What `encode` gives, as int32 arrays; long texts are encoded in pieces if that does not show."""
        parts = [[*pieces(text)] if self.in_pieces else [text] for text in texts]
        rows = iter(self.encode([part for text in parts for part in text]))
        return [np.concatenate([np.asarray(next(rows), np.int32) for _ in text]) for text in parts]

    def decode(self, ids) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def fingerprint(self) -> str:
        """A text that differs if `encode` would, or what stands between documents and before contexts."""
        text, facts = self.backend.to_str(), [self.bos, self.in_pieces]
        facts += [] if self.vocab_size is None else [self.vocab_size]
        return text if facts == [None, True] else json.dumps([text, *facts])

    def pad(self, texts: list[str], side: str = "right") -> tuple[np.ndarray, np.ndarray]:
        return pad(self, texts, side)


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


def pieces(document: str, characters: int = 20_000) -> Iterator[str]:
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


def load_tokenizer(lm: "LM") -> Tokenizer:
    """The tokenizer in the folder that `lm` was loaded from. Raises BadInput if there is none or it does not fit."""
    if lm.folder is None:
        raise BadInput("this model was not loaded from a folder, so it has no tokenizer: give token ids")
    return tokenizer_of(Path(lm.folder), lm.config.vocab_size)


def tokenizer_of(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in the folder of a model with `vocab_size` entries. Raises BadInput as `load_tokenizer` does."""
    has = lambda *names: all((folder / name).is_file() for name in names)
    if not has("tokenizer.json") and not has("vocab.json", "merges.txt"):
        message = (
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt), and text input needs one: "
            "put its files there, or give token ids (--text tokens:FILE.npy)"
        )
        if has("tokenizer.model"):
            message = (
                f"{folder} holds its tokenizer as tokenizer.model alone, which is not read: write tokenizer.json "
                f"beside it, by transformers' AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}') "
                "with the package sentencepiece"
            )
        raise BadInput(message)
    try:
        tokenizer = (_from_json if has("tokenizer.json") else _from_vocabulary)(folder)
    except BadInput:
        raise
    except Exception as error:  # whatever transformers, tokenizers and json raise for missing or broken files
        raise BadInput(
            f"the tokenizer in {folder} (tokenizer.json, or vocab.json and merges.txt) does not load: {error}"
        ) from error
    largest = max(tokenizer.backend.get_vocab().values(), default=-1)
    if not 0 <= tokenizer.end_of_text < vocab_size:
        raise BadInput(
            f"the tokenizer in {folder} ends texts with token {tokenizer.end_of_text}, but the model's vocabulary has "
            f"{vocab_size} entries: they do not belong together"
        )
    # Tokens that were added behind the model's vocabulary ([PAD]) do no harm while no text holds them.
    return tokenizer if largest < vocab_size else replace(tokenizer, vocab_size=vocab_size)


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
    about = {"eos_token": slow.eos_token, "bos_token": slow.bos_token}
    return make_tokenizer(slow.backend_tokenizer, str(folder), about)


def make_tokenizer(backend: tokenizers.Tokenizer, name: str, about: dict = {}) -> Tokenizer:
    """The record of a tokenizer: its own files say how it packs; `about` is the dict of tokenizer_config.json."""
    vocabulary = backend.get_vocab()
    end = vocabulary.get(END_OF_TEXT, vocabulary.get(_content(about.get("eos_token"))))
    if end is None:
        raise BadInput(f"the tokenizer in {name} has neither {END_OF_TEXT} nor an end-of-sequence token")
    named = [END_OF_TEXT, *(_content(about.get(f"{kind}_token")) for kind in ("bos", "eos", "pad"))]
    # A file may forget to say that its own end-of-text token is special, and then it would be read from texts.
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    backend.add_special_tokens([token.content for token in added if token.content in named])
    bos = _bos(backend, about, name)
    start = bos if bos is not None else vocabulary.get(_content(about.get("bos_token")), end)
    return Tokenizer(
        backend, end, name, bos, _in_pieces(json.loads(backend.to_str())), start, None, _chat_template(about, name)
    )


def _chat_template(about: dict, folder: str) -> str | None:
    path, written = Path(folder) / "chat_template.jinja", about.get("chat_template")
    if path.is_file():
        return path.read_text()
    # Several templates by name, of which transformers takes this one.
    named = {entry["name"]: entry["template"] for entry in written} if isinstance(written, list) else {}
    return named.get("default") if named else written


def render_chats(tokenizer: Tokenizer) -> Callable[[list[dict]], str]:
    """A function from the messages of a chat, [{"role": ..., "content": ...}, ...], to its text by the tokenizer's
    chat template, for `encode_chats`.

    Raises BadInput if the tokenizer has no template; the function raises ValueError for messages that do not fit it, or
    that hold a special token as text.
    """
    if tokenizer.chat_template is None:
        raise BadInput(
            f"the tokenizer in {tokenizer.name} has no chat template, so it cannot read a column of messages: give a "
            "column of text, or add chat_template.jinja there"
        )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        import jinja2  # transformers needs it for templates only
        from transformers import AutoTokenizer
    except ImportError as error:
        raise BadInput('chats need the package jinja2: pip install "jaxsae[hf]"') from error

    theirs = AutoTokenizer.from_pretrained(tokenizer.name, local_files_only=True)
    added = tokenizer.backend.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special]

    def render(messages: list[dict]) -> str:
        if not all(isinstance(message, dict) and "role" in message for message in messages):
            raise ValueError('messages must be objects with "role" and "content"')
        written = json.dumps(messages, ensure_ascii=False, default=str)
        if found := [token for token in special if token in written]:
            raise ValueError(f"a message holds the special token {found[0]} as text")
        try:
            return theirs.apply_chat_template(messages, tokenize=False)
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"the messages do not fit the chat template: {error}") from error

    return render


def _content(token) -> str | None:
    """The text of a token of tokenizer_config.json, which is a string or an object."""
    return token.get("content") if isinstance(token, dict) else token


def _bos(backend: tokenizers.Tokenizer, about: dict, name: str) -> int | None:
    """The token to begin contexts with: what the tokenizer is set up to put before a text, None if nothing.

    `add_bos_token` of tokenizer_config.json decides (Gemma, Llama 2: true; Qwen: false); if it is not there, the
    post-processor of tokenizer.json (Llama 3 has one that puts a token first; GPT-2 and Pythia have none).
    """
    if about.get("add_bos_token") is not None:
        if not about["add_bos_token"]:
            return None
        token = _content(about.get("bos_token"))
        bos = None if token is None else backend.token_to_id(token)
        if bos is None:
            raise BadInput(
                f"tokenizer_config.json in {name} says add_bos_token, but its bos_token is {token!r}, which is no "
                "token of tokenizer.json: name the token, or say add_bos_token false"
            )
        return bos
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
