"""What families read from a folder in Hugging Face format: sizes from its config.json, tensors by their names."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput


def size(hf: dict, name: str, folder: Path, default: int | None = None) -> int:
    """The positive whole number that config.json, `hf`, has under `name`; `default` if it has none or 0."""
    value = hf.get(name) or default
    if value is None and name not in hf:
        raise BadInput(f"{folder}/config.json does not say {name!r}")
    if type(value) is not int or value < 1:
        raise BadInput(f"{folder}/config.json says {name} is {hf.get(name)!r}: it must be a positive whole number")
    return value


def choice(hf: dict, name: str, default: str, allowed, folder: Path) -> str:
    """The word that config.json, `hf`, has under `name` (default: `default`), which must be one of `allowed`."""
    value = hf.get(name, default)
    if value not in tuple(allowed):
        raise BadInput(f"{folder}/config.json says {name} is {value!r}: allowed are {', '.join(allowed)}")
    return value


def flag(hf: dict, name: str, default: bool, folder: Path) -> bool:
    """The truth value that config.json, `hf`, has under `name`."""
    value = hf.get(name, default)
    if not isinstance(value, bool):
        raise BadInput(f"{folder}/config.json says {name} is {value!r}: it must be true or false")
    return value


def positive(hf: dict, name: str, default: float, folder: Path) -> float:
    """The positive number that config.json, `hf`, has under `name`."""
    value = hf.get(name, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise BadInput(f"{folder}/config.json says {name} is {value!r}: it must be a positive number")
    return float(value)


def refuse(hf: dict, names: Iterable[str], folder: Path):
    """Raises BadInput if config.json, `hf`, turns on one of `names`: mathematics that are not computed here."""
    for name in names:
        if hf.get(name):
            raise BadInput(f"{folder}/config.json says {name} is {hf[name]!r}: models with it are not supported")


def named(tensors: Mapping[str, np.ndarray], name: str, shown) -> np.ndarray:
    """The tensor called `name` of the model that messages call `shown`."""
    if name not in tensors:
        raise BadInput(f"{shown} has no weights called {name}: it does not fit its config.json")
    return tensors[name]


def nested(tensors: Mapping[str, np.ndarray], names: Mapping[str, tuple[str, ...]], shown) -> dict:
    """Nested dicts of the tensors, from {Hugging Face's name: path in the dicts}."""
    params: dict = {}
    for name, (*parents, leaf) in names.items():
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = named(tensors, name, shown)
    return params


def flat(params: dict, names: Mapping[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """The tensors of nested dicts under Hugging Face's names: the inverse of `nested`."""
    tensors = {}
    for name, path in names.items():
        node = params
        for part in path:
            node = node[part]
        tensors[name] = np.asarray(node)
    return tensors


def check_shapes(params, shapes, shown):
    """Raises BadInput if an array of `params` has not the shape that `shapes`, a tree with the same keys, says, or does
    not hold floating-point numbers.
    """
    for path, want in jax.tree.leaves_with_path(shapes):
        have = params
        for part in path:
            have = have[part.key]
        name = ".".join(part.key for part in path)
        if not jnp.issubdtype(have.dtype, jnp.floating):
            raise BadInput(f"{shown} has weights {name} of type {have.dtype}: quantised models are not supported")
        if have.shape != want.shape:
            raise BadInput(
                f"{shown} has weights {name} of shape {list(have.shape)}, but its config.json says {list(want.shape)}"
            )
