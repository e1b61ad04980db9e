"""Mistral: a Llama in which every layer may see only a window of positions (7B v0.1), and without biases."""

from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.lm import decoder, decoder_config
from jaxsae.lm import hf as files
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.precision import Precision

# Of config.json without these entries; null means another thing.
DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}


def read_config(hf: dict, folder: Path, precision: Precision) -> DecoderConfig:
    hf = DEFAULTS | hf
    files.refuse(hf, ("attention_bias",), folder)
    n_layer = files.size(hf, "num_hidden_layers", folder)
    # Transformers' Mistral pays no regard to layer_types.
    types = hf.pop("layer_types", None)
    windows = decoder_config.windows(hf, folder, n_layer * [hf["sliding_window"] is not None])
    if types is not None and decoder_config.windows(hf | {"layer_types": types}, folder, n_layer * [False]) != windows:
        raise BadInput(
            f"{folder}/config.json says layer_types is {types!r}, but the window of a Mistral, sliding_window "
            f"{hf['sliding_window']!r}, is that of all its layers: remove the wrong one"
        )
    return decoder_config.read(hf, folder, precision, windows=windows, biases=(False, False), reads=("sliding_window",))


ARCHITECTURE = decoder.architecture(read_config)
