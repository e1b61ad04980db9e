"""The tokenizer that belongs to a language model, by the transformers library."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxsae.errors import BadInput
from jaxsae.lm.model import LM

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Tokenizer:
    backend: Any
    end_of_text: int
    name: str

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; nothing is added."""
        return self.backend(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids) -> str:
        return self.backend.decode(ids)

    def fingerprint(self) -> str:
        """Says everything that decides what `encode` returns."""
        return self.backend.backend_tokenizer.to_str()


def load_tokenizer(lm: LM) -> Tokenizer:
    """The tokenizer in the folder that `lm` was loaded from. Raises BadInput where there is none or it does not fit."""
    if lm.folder is None:
        raise BadInput("this model was not loaded from a folder, so it has no tokenizer: give token ids")
    # In a folder without these files, transformers makes up a tokenizer that knows no text, and says nothing.
    has = lambda *names: all((Path(lm.folder) / name).is_file() for name in names)
    if not has("tokenizer.json") and not has("vocab.json", "merges.txt"):
        raise BadInput(
            f"{lm.folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt), and text input needs one"
        )
    # Without this, transformers complains on import that PyTorch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(lm.folder, local_files_only=True)
    except Exception as error:  # whatever transformers, tokenizers and json raise for missing or broken files
        raise BadInput(
            f"the tokenizer in {lm.folder} (tokenizer.json, or vocab.json and merges.txt) does not load: {error}"
        ) from error
    if not backend.is_fast:
        raise BadInput(f"the tokenizer in {lm.folder} is a slow one: save its tokenizer.json there")
    vocabulary = backend.get_vocab()
    if not vocabulary or max(vocabulary.values()) >= lm.config.vocab_size:
        raise BadInput(
            f"the tokenizer in {lm.folder} has ids up to {max(vocabulary.values(), default=-1)}, but the model's "
            f"vocabulary has {lm.config.vocab_size} entries: they do not belong together"
        )
    end = vocabulary.get(END_OF_TEXT, backend.eos_token_id)
    if end is None:
        raise BadInput(f"the tokenizer in {lm.folder} has neither {END_OF_TEXT} nor an end-of-sequence token")
    return Tokenizer(backend, end, lm.folder)
