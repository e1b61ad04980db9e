"""Qwen 3, dense: queries and keys are normalised head by head; no biases, and heads of a width of their own."""

from pathlib import Path

from jaxsae.lm import decoder, decoder_config, qwen2
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.precision import Precision

# Of config.json without this entry.
DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128}


def read_config(hf: dict, folder: Path, precision: Precision) -> DecoderConfig:
    hf = DEFAULTS | hf
    windows = qwen2.windows(hf, folder)
    return decoder_config.read(hf, folder, precision, windows=windows, qk_norm=True, reads=qwen2.WINDOWS)


ARCHITECTURE = decoder.architecture(read_config)
