"""Lists of configurations, {name: Config}: products, zips and overrides of fields named as their flags are.

A name consists of what its run was given: `n=4096-k=32-seed=1`. It does not depend on the other runs of the list, so a
list may grow and its runs keep their folders.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxsae.config import Config, fields_of, with_fields
from jaxsae.distributed.processes import DistributedConfig
from jaxsae.errors import BadInput

# What the sweep itself decides, for each run.
NOT_SWEPT = {"run", "resume", *fields_of(DistributedConfig())}
# Longer names and values are cut, and end with a digest of the whole.
LONGEST_NAME, LONGEST_VALUE = 150, 48


def product(base: Config | Mapping[str, Config], axes: Mapping[str, Sequence]) -> dict[str, Config]:
    """{name: config} of every combination of the values of some fields.

        product(Config(), {"sae.n": [2048, 4096], "seed": [0, 1]})  # n=2048-seed=0, n=2048-seed=1, ...

    `base` may itself be {name: config}: each of its names then gets every combination. Raises BadInput for fields that
    a configuration does not have, and for values that it does not allow.
    """
    return _varied(base, axes, lambda *values: itertools.product(*values))


def zipped(base: Config | Mapping[str, Config], axes: Mapping[str, Sequence]) -> dict[str, Config]:
    """{name: config} of the first values of some fields, of the second ones, and so on.

        zipped(Config(), {"sae.n": [2048, 4096], "lr": [6e-4, 4e-4]})  # n=2048-lr=0.0006, n=4096-lr=0.0004

    `base` may itself be {name: config}. Raises BadInput as `product` does, and if there are more values of one field
    than of another.
    """
    lengths = {key: len(values) for key, values in axes.items() if _is_list(values)}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{key} has {count}" for key, count in lengths.items())
        raise BadInput(f"zipped fields have different numbers of values: {described}; give as many of each")
    return _varied(base, axes, zip)


def override(configs: Mapping[str, Config], fields: Mapping[str, Any]) -> dict[str, Config]:
    """The same runs under the same names, with other values of some fields.

        override(grid, {"tokens": 2_000_000, "lr": lambda config: 2e-4 / (config.sae.n / 2**14) ** 0.5})

    A function is called with each configuration, as it was before. Raises BadInput for a field whose value the names
    say, because they would no longer be true.
    """
    changed = {}
    for name, config in configs.items():
        for key in fields:
            labels = (f"{_label(key, [key])}=", f"{key}=")
            if part := next((p for p in name.split("-") if p.startswith(labels)), None):
                raise BadInput(f"override sets {key}, but the run {name} is named by its {part}: vary it instead")
        values = {key: value(config) if callable(value) else value for key, value in fields.items()}
        changed[name] = _with(config, values, name)
    return changed


def union(*lists: Mapping[str, Config]) -> dict[str, Config]:
    """All runs of several lists. Raises BadInput if two have one name and differ; equal ones are one run."""
    together: dict[str, Config] = {}
    for configs in lists:
        for name, config in configs.items():
            if together.setdefault(name, config) != config:
                a, b = fields_of(together[name]), fields_of(config)
                different = ", ".join(key for key in a if a[key] != b[key])
                raise BadInput(f"two runs are called {name} and differ in {different}: name one of them otherwise")
    return together


def _varied(base, axes: Mapping[str, Sequence], combine: Callable) -> dict[str, Config]:
    for key, values in axes.items():
        if not _is_list(values):
            raise BadInput(f"{key} is {values!r}: give a list of values, [{values!r}]")
        if not len(values):
            raise BadInput(f"{key} has no values: give at least one")
    if not axes:
        raise BadInput("there are no fields to vary: give at least one, such as {'seed': [0, 1]}")
    starts = {"": base} if isinstance(base, Config) else base
    configs: dict[str, Config] = {}
    for start, config in starts.items():
        for values in combine(*([_plain(value) for value in axis] for axis in axes.values())):
            fields = dict(zip(axes, values))
            parts = [f"{_label(key, axes)}={_text(value)}" for key, value in fields.items()]
            name = _cut("-".join(([start] if start else []) + parts), LONGEST_NAME)
            if name in configs:
                raise BadInput(f"the run {name} is there twice: give each value of a field once")
            configs[name] = _with(config, fields, name)
    return configs


def _with(config: Config, fields: Mapping[str, Any], name: str) -> Config:
    if decided := [key for key in fields if key in NOT_SWEPT]:
        raise BadInput(f"{decided[0]} cannot be set here: a sweep decides it for each run; leave it out")
    try:
        return with_fields(config, **{key: _plain(value) for key, value in fields.items()})
    except TypeError as error:
        raise BadInput(f"the run {name} cannot have {dict(fields)}: {error}") from error
    except BadInput as error:
        raise BadInput(f"the run {name}: {error}") from error


def _is_list(values) -> bool:
    return isinstance(values, Sequence | np.ndarray | range) and not isinstance(values, str | bytes)


def _plain(value):
    """Numbers of NumPy as Python's, lists as the tuples that configurations have."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple | np.ndarray) else value


def _label(key: str, keys) -> str:
    """The last part of a dotted name, or the whole where two fields share it."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _text(value) -> str:
    """A value as part of a name: digits and letters that file systems and shells leave alone."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        return _cut("+".join(map(_text, value)) or "none", LONGEST_VALUE)
    text = str(value)
    safe = re.sub(r"[^A-Za-z0-9._=+]+", "_", text.rstrip("/").rpartition("/")[2] if "/" in text else text)
    return _cut(safe if safe == text else f"{safe[:LONGEST_VALUE]}_{_digest(text)}", LONGEST_VALUE)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 7]}_{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
