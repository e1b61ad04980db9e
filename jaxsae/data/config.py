"""The settings of the data; each field is a flag of `jaxsae train`, or of `jaxsae prepare`."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxsae.errors import BadInput

# Tokens that a tokenizer has names for.
SPECIAL = ("bos", "eos", "pad")

# What a name of activations that are made, not read, begins with (synthetic.py).
SYNTHETIC = "synthetic:"


def is_synthetic(activations: str | None) -> bool:
    """Whether --activations names made activations and no files."""
    return activations is not None and activations.startswith(SYNTHETIC)


@dataclass(frozen=True)
class DataConfig:
    text: tuple[str, ...] = ("stdlib",)
    """Text sources: stdlib; files, globs and folders of .txt, .jsonl, .json, .csv, .parquet, .arrow (compressed or in
    archives); tfds:NAME[/CONFIG][:SPLIT]; hf:NAME[/CONFIG][:SPLIT]; tokens:PATH for token ids; each with #COLUMN."""
    documents: int | None = None
    """Take only the first so many documents of the text; default: all."""
    activations: str | None = None
    """Train on activations from files instead of a language model's: DIR of .npy, .safetensors, .pt, .npz or .zarr,
    [rows, d] or [b, T, d]; DIR#KEY if a file holds several arrays. Or on made ones with known features: synthetic:zipf,
    synthetic:hierarchy, synthetic:correlated, synthetic:mixed, or none: synthetic:gaussian, synthetic:gaussian-768;
    synthetic:points, synthetic:manifolds."""
    held_out: str | None = None
    """With --activations: a folder of its own to evaluate on; default: the last twentieth of each file."""
    max_norm: float | None = None
    """With --activations: leave out rows of zeros, and rows of more than so many times the median norm, in training and
    evaluation; default: leave out none."""
    context: int = 64
    """Tokens of a context."""
    pack: Literal["stream", "documents"] = "stream"
    """stream: documents are joined and cut into contexts; documents: each begins a context, and what is missing at the
    end of its last one is padding, which is left out."""
    bos: bool = False
    """Begin every context with the model's BOS token (of GPT-2 the end-of-text token); one whose tokenizer puts it
    before every text always has it."""
    skip_first: bool = False
    """Leave out position 0 of each context, in training and in evaluation."""
    skip_tokens: tuple[str, ...] = ()
    """Leave out these tokens, in training and in evaluation: bos, eos, pad, or token ids."""
    buffer_batches: int = 16
    """Batches whose activations are computed, and shuffled, together."""
    cache: str | None = None
    """Folder for tokenised text; default: $JAXSAE_CACHE or ~/.cache/jaxsae."""
    data_processes: int | None = None
    """Processes that tokenise text; default: one for each core."""
    bad_documents: Literal["fail", "skip"] = "fail"
    """What to do about documents that cannot be read: fail after the others are tokenised, or leave them out."""

    def __post_init__(self):
        if self.context < 2:
            raise BadInput(f"--context is {self.context}: give at least 2 tokens")
        if self.documents is not None and self.documents < 1:
            raise BadInput(f"--documents is {self.documents}: give at least 1")
        for flag, value in (("--held-out", self.held_out), ("--max-norm", self.max_norm)):
            if value is not None and (self.activations is None or is_synthetic(self.activations)):
                raise BadInput(f"{flag} is of activations from files: give --activations DIR, or leave it out")
        if self.max_norm is not None and not 1 <= self.max_norm < math.inf:
            raise BadInput(f"--max-norm is {self.max_norm}: give a multiple of the median norm, at least 1")
        if self.buffer_batches < 1:
            raise BadInput(f"--buffer-batches is {self.buffer_batches}: give at least 1 batch")
        for name in self.skip_tokens:
            if name not in SPECIAL and not name.isdecimal():
                raise BadInput(f"--skip-tokens has {name}: allowed are {', '.join(SPECIAL)} and token ids")
        if self.data_processes is not None and self.data_processes < 1:
            raise BadInput(f"--data-processes is {self.data_processes}: give at least 1")
        if not self.text and self.activations is None:
            raise BadInput("--text is empty: give at least one source")


@dataclass(frozen=True)
class PrepareConfig:
    lm: str = "embedded"
    """Language model whose tokenizer is used: embedded, a folder in Hugging Face format, or a hub name."""
    text: tuple[str, ...] = ("stdlib",)
    """Text sources, as in jaxsae train."""
    tokens: int | None = None
    """Tokens of training text, as many as a run will be given with --tokens; default: all of the text."""
    eval_tokens: int = 262_144
    """With --tokens: tokens of held-out text."""
    documents: int | None = None
    """Take only the first so many documents of the text; default: all."""
    part: str = "1/1"
    """I/N: tokenise the I-th of N parts, from 1. N hosts that share --cache do the whole text together."""
    cache: str | None = None
    """Folder for tokenised text; default: $JAXSAE_CACHE or ~/.cache/jaxsae."""
    data_processes: int | None = None
    """Processes that tokenise text; default: one for each core."""
    bad_documents: Literal["fail", "skip"] = "fail"
    """What to do about documents that cannot be read: fail after the others are tokenised, or leave them out."""

    def __post_init__(self):
        for name in ("tokens", "eval_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} is {getattr(self, name)}: give at least 1")
        number, _, count = self.part.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise BadInput(f"--part is {self.part}: give I/N, from 1/N to N/N")
