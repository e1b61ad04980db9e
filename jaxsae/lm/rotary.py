"""Rotary position embeddings (Su et al. 2021): pairs of channels are turned by angles that grow with the position.

B sequences, T tokens, H heads, K width of a head. Of a head the first 2 F channels are turned, channel i together with
channel i + F (the order of Hugging Face's files). F frequencies say how fast; scaled kinds of them serve contexts
longer than those that a model was first trained on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm import hf as files

_TRAINED = "original_max_position_embeddings"

# The kinds of frequencies, and what each reads from config.json beside the base.
SETTINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _TRAINED),
    "yarn": ("factor", _TRAINED, "attention_factor", "beta_fast", "beta_slow", "truncate"),
}


@dataclass(frozen=True)
class Rotary:
    frequencies: tuple[float, ...]
    """Radians per position of each of F pairs of channels."""
    scale: float = 1.0
    """What turned queries and keys are multiplied by (yarn)."""


def rotate(x, positions, rotary: Rotary):
    """Queries or keys [B, T, H, K] turned by the angles of their positions, [T] or [B, T]."""
    pairs = len(rotary.frequencies)
    angles = positions[..., None, None] * jnp.asarray(rotary.frequencies, x.dtype)
    cos, sin = rotary.scale * jnp.cos(angles), rotary.scale * jnp.sin(angles)
    a, b, rest = jnp.split(x, (pairs, 2 * pairs), axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def read(
    hf: Mapping,
    head_dim: int,
    folder: Path,
    theta: float = 10_000.0,
    share: float = 1.0,
    names: Mapping[str, str] = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"},
) -> Rotary:
    """The rotary embedding of heads of width `head_dim` that config.json, `hf`, states.

    Files have `rope_parameters`, or (older ones) `rope_scaling` and, beside it, the base and the part of a head that is
    turned, by `names` {entry beside: setting in the block}; `theta` and `share` are their defaults. Raises BadInput for
    a kind or a setting that is not known, or if two places disagree.
    """
    blocks = {name: hf[name] for name in ("rope_parameters", "rope_scaling") if hf.get(name)} or {"rope_parameters": {}}
    for name, block in blocks.items():
        if not isinstance(block, Mapping) or any(isinstance(value, Mapping) for value in block.values()):
            raise BadInput(f"{folder}/config.json says {name} is {block!r}: give one set of rotary settings")
    beside = {name: hf[name] for name in names if hf.get(name) is not None}
    settings = [_settings(block, beside, names, folder) for block in blocks.values()]
    defaults = {"rope_theta": theta, "partial_rotary_factor": share}
    found = {_rotary(kind, defaults | entries, hf, head_dim, folder) for kind, entries in settings}
    if len(found) > 1:
        raise BadInput(f"{folder}/config.json has both rope_parameters and rope_scaling, which differ: remove one")
    return found.pop()


def _settings(block: Mapping, beside: Mapping, names: Mapping, folder: Path) -> tuple[str, dict]:
    """The kind of a block of settings, and the settings, with those `beside` the block."""
    settings = {name: value for name, value in block.items() if value is not None}
    for name, value in beside.items():
        have = settings.setdefault(names[name], value)
        if have != value:
            raise BadInput(
                f"{folder}/config.json says {names[name]} {have!r} and {name} {value!r}: remove the wrong one"
            )
    # Older files call the kind `type`.
    kind = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(kind, str) or kind not in SETTINGS:
        raise BadInput(f"{folder}/config.json says rope_type is {kind!r}: allowed are {', '.join(SETTINGS)}")
    if settings.pop("type", kind) != kind:
        raise BadInput(f"{folder}/config.json says rope_type {kind!r} and type {block['type']!r}: remove one")
    for name in settings.keys() - {"rope_type", "rope_theta", "partial_rotary_factor", *SETTINGS[kind]}:
        raise BadInput(f"{folder}/config.json says {name} is {block[name]!r}: rope_type {kind} has no such setting")
    return kind, settings


def _rotary(kind: str, settings: dict, hf: Mapping, head_dim: int, folder: Path) -> Rotary:
    number = lambda name, default=None: files.positive(settings, name, default, folder)
    share, theta = number("partial_rotary_factor"), number("rope_theta")
    turned = int(head_dim * share)
    if turned % 2 or not 0 < turned <= head_dim:
        raise BadInput(
            f"{folder}/config.json: a share of {share:g} of heads of width {head_dim} is {turned} channels, but rotary "
            "embeddings turn pairs of channels"
        )
    context = files.size(hf, "max_position_embeddings", folder)
    # Some files have it beside the block, and then that counts.
    settings[_TRAINED] = hf.get(_TRAINED) or settings.get(_TRAINED, context)
    plain = theta ** -(np.arange(0, turned, 2) / turned)
    if kind == "yarn":
        settings.setdefault("factor", context / number(_TRAINED))
        ends = [_pair(number(_TRAINED), number(*beta), turned, theta) for beta in (("beta_fast", 32), ("beta_slow", 1))]
        frequencies = _yarn(plain, number("factor"), ends, turned, files.flag(settings, "truncate", True, folder))
        # The default is that of Peng et al. 2023, sec. 3.4.
        scale = number("attention_factor", 1 + 0.1 * math.log(max(number("factor"), 1)))
        return Rotary(tuple(frequencies.tolist()), scale)
    if kind == "llama3":
        factor, low, high, trained = (number(name) for name in SETTINGS["llama3"])
        if not low < high:
            raise BadInput(f"{folder}/config.json: low_freq_factor {low:g} must be below high_freq_factor {high:g}")
        plain = _llama3(plain, factor, low, high, trained)
    if kind == "linear":
        plain = plain / number("factor")
    return Rotary(tuple(plain.tolist()))


def _llama3(plain, factor, low, high, trained):
    """Llama 3.1's: slow pairs are slowed by `factor`, fast ones are kept, those between are interpolated."""
    turns = trained * plain / (2 * math.pi)
    weight = np.clip((turns - low) / (high - low), 0, 1)
    return plain * ((1 - weight) / factor + weight)


def _pair(positions: float, turns: float, turned: int, theta: float) -> float:
    """The number of the pair that makes so many turns in so many positions (Peng et al. 2023, sec. 3.2)."""
    return turned * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _yarn(plain, factor, ends, turned, truncate):
    """YaRN (Peng et al. 2023): pairs after the second of `ends` are slowed by `factor`, those before the first kept."""
    low, high = (math.floor(ends[0]), math.ceil(ends[1])) if truncate else ends
    low, high = max(low, 0), min(high, turned - 1)
    slowed = np.clip((np.arange(len(plain)) - low) / ((high - low) or 0.001), 0, 1)
    return plain * (slowed / factor + 1 - slowed)
