"""jaxsae: sparse autoencoders for language models, in JAX."""

import importlib

__version__ = "0.1.0"

# Public names and where they live; imported when first used, so that `import jaxsae` costs little more than JAX.
_NAMES = {
    "SAE": "jaxsae.sae.types",
    "Spec": "jaxsae.sae.types",
    "Code": "jaxsae.sae.types",
    "encode": "jaxsae.sae.encode",
    "decode": "jaxsae.sae.encode",
    "dense": "jaxsae.sae.encode",
    "with_topk": "jaxsae.sae.swap",
    "with_threshold": "jaxsae.sae.swap",
    "load": "jaxsae.run.saved",
    "describe": "jaxsae.run.saved",
    "BadInput": "jaxsae.errors",
}
_MODULES = ("lm",)

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name):
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxsae.{name}")
    raise AttributeError(f"module 'jaxsae' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
