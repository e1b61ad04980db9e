"""Language models, of any family in architecture.py, cut at TransformerLens's hook points."""

import importlib

# Public names and where they live; imported when first used, so that a config costs no model library.
_NAMES = {
    "LM": "jaxsae.lm.model",
    "advance": "jaxsae.lm.model",
    "block_ends": "jaxsae.lm.architecture",
    "capture": "jaxsae.lm.model",
    "checksum": "jaxsae.lm.weights",
    "default_hook": "jaxsae.lm.hooks",
    "depth": "jaxsae.lm.architecture",
    "final": "jaxsae.lm.model",
    "load": "jaxsae.lm.weights",
    "on_device": "jaxsae.lm.weights",
    "open_model": "jaxsae.lm.weights",
    "load_tokenizer": "jaxsae.lm.tokenizer",
    "prefix": "jaxsae.lm.model",
    "prefixes": "jaxsae.lm.model",
    "process_weights": "jaxsae.lm.model",
    "run": "jaxsae.lm.model",
    "suffix": "jaxsae.lm.model",
    "special_token": "jaxsae.lm.special_tokens",
    "token_ids": "jaxsae.lm.special_tokens",
    "unembed": "jaxsae.lm.model",
}

__all__ = [*_NAMES]


def __getattr__(name):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'jaxsae.lm' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
