"""Qwen 2 and 2.5: a Llama whose queries, keys and values have biases, and whose later layers may have windows."""

from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.lm import decoder, decoder_config
from jaxsae.lm import hf as files
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.precision import Precision

# Of config.json without these entries; null means another thing.
DEFAULTS = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}

WINDOWS = ("layer_types", "sliding_window")


def read_config(hf: dict, folder: Path, precision: Precision) -> DecoderConfig:
    hf = DEFAULTS | hf
    # That queries, keys and values have biases, and the output has none, is in no entry.
    return decoder_config.read(hf, folder, precision, windows=windows(hf, folder), biases=(True, False), reads=WINDOWS)


def windows(hf: dict, folder: Path) -> tuple[int | None, ...]:
    """The attention window of each layer: of those from `max_window_layers` on, if `use_sliding_window` says so."""
    if not files.flag(hf, "use_sliding_window", False, folder):
        hf = hf | {"sliding_window": None}
    full, n_layer = hf["max_window_layers"], files.size(hf, "num_hidden_layers", folder)
    if type(full) is not int:
        raise BadInput(f"{folder}/config.json says max_window_layers is {full!r}: it must be a whole number")
    sliding = [hf["sliding_window"] is not None and layer >= full for layer in range(n_layer)]
    return decoder_config.windows(hf, folder, sliding)


ARCHITECTURE = decoder.architecture(read_config)
