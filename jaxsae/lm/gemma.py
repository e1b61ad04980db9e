"""Gemma 1: a gated MLP with GELU, an embedding times the square root of its width, norms that multiply by 1 + w."""

from collections.abc import Mapping
from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.lm import decoder, decoder_config
from jaxsae.lm import hf as files
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.lm.layers import ACTIVATIONS
from jaxsae.precision import Precision

# Of config.json without these entries.
DEFAULTS = {"num_key_value_heads": 16, "head_dim": 256}


def read_config(hf: dict, folder: Path, precision: Precision) -> DecoderConfig:
    return read(DEFAULTS | hf, folder, precision)


def read(hf: Mapping, folder: Path, precision: Precision, **fields) -> DecoderConfig:
    """What all Gemmas have; `fields` are those of decoder_config.read that one has of its own."""
    common = {"gain_offset": 1.0, "scaled_embedding": True, "tied": True, "activation": activation(hf, folder)}
    return decoder_config.read(hf, folder, precision, **common, **fields)


def activation(hf: Mapping, folder: Path) -> str:
    """The MLP's function: `hidden_activation`, or `hidden_act`, in which older files say gelu of the tanh form."""
    default = "gelu_pytorch_tanh"
    old, new = (hf.get(name) or default for name in ("hidden_act", "hidden_activation"))
    old = default if old == "gelu" else old
    if hf.get("hidden_act") and hf.get("hidden_activation") and old != new:
        raise BadInput(
            f"{folder}/config.json says hidden_act {hf['hidden_act']!r} and hidden_activation {new!r}: "
            "remove the wrong one"
        )
    name = "hidden_activation" if hf.get("hidden_activation") else "hidden_act"
    return files.choice({name: new if name == "hidden_activation" else old}, name, default, ACTIVATIONS, folder)


def optional(hf: Mapping, name: str, folder: Path) -> float | None:
    """The positive number that config.json, `hf`, has under `name`; None if it has null."""
    return None if hf[name] is None else files.positive(hf, name, 0, folder)


ARCHITECTURE = decoder.architecture(read_config)
