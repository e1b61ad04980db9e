"""The subject model: GPT-2 or GPT-Neo in Flax, cut at TransformerLens's hook points."""

from jaxsae.lm.hooks import default as default_hook
from jaxsae.lm.model import LM, advance, capture, final, prefix, run, suffix, unembed
from jaxsae.lm.process import process_weights
from jaxsae.lm.tokenizer import load_tokenizer
from jaxsae.lm.weights import checksum, load

__all__ = [
    "LM",
    "advance",
    "capture",
    "checksum",
    "default_hook",
    "final",
    "load",
    "load_tokenizer",
    "prefix",
    "process_weights",
    "run",
    "suffix",
    "unembed",
]
