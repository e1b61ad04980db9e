"""Gemma 2: norms after attention and MLP too, soft-caps, and a window in every other layer, also the first."""

from pathlib import Path

from jaxsae.lm import decoder, decoder_config
from jaxsae.lm import hf as files
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.lm.gemma import optional, read
from jaxsae.precision import Precision

# Of config.json without these entries; null means another thing.
DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}

READS = ("attn_logit_softcapping", "final_logit_softcapping", "layer_types", "query_pre_attn_scalar", "sliding_window")


def read_config(hf: dict, folder: Path, precision: Precision) -> DecoderConfig:
    hf = DEFAULTS | hf
    sliding = [layer % 2 == 0 for layer in range(files.size(hf, "num_hidden_layers", folder))]
    return read(
        hf,
        folder,
        precision,
        windows=decoder_config.windows(hf, folder, sliding),
        scale=files.positive(hf, "query_pre_attn_scalar", 0, folder) ** -0.5,
        cap=optional(hf, "attn_logit_softcapping", folder),
        logit_cap=optional(hf, "final_logit_softcapping", folder),
        post_norms=True,
        reads=READS,
    )


ARCHITECTURE = decoder.architecture(read_config)
