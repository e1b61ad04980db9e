"""Llama 2 and 3, and models that are one in all but name: SmolLM, DeepSeek-R1's distillations into Llama."""

from pathlib import Path

from jaxsae.lm import decoder, decoder_config
from jaxsae.lm import hf as files
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.precision import Precision


def read_config(hf: dict, folder: Path, precision: Precision) -> DecoderConfig:
    mlp_bias = files.flag(hf, "mlp_bias", False, folder)
    return decoder_config.read(hf, folder, precision, mlp_bias=mlp_bias, reads=("mlp_bias",))


ARCHITECTURE = decoder.architecture(read_config)
