"""Gemma 3, the text model: five layers with a window to one without, each kind with a rotary embedding of its own;
queries and keys are normalised head by head; norms after attention and MLP too.

`gemma3_text` is a model of text. `gemma3` reads images as well: its text half is the same model, and alone is read.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.lm import decoder, decoder_config, rotary
from jaxsae.lm import hf as files
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.lm.gemma import optional, read
from jaxsae.lm.rotary import Rotary
from jaxsae.precision import Precision

# Of config.json without these entries, of which files of models that read images have few.
DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": None,
}

READS = ("final_logit_softcapping", "layer_types", "query_pre_attn_scalar", "sliding_window")

# What the names of tensors outside the text half begin with.
IMAGES = ("vision_tower.", "multi_modal_projector.")


def read_config(hf: dict, folder: Path, precision: Precision) -> DecoderConfig:
    if hf["model_type"] == "gemma3":
        hf = _text_half(hf, folder)
    hf = DEFAULTS | hf
    period, n_layer = files.size(hf, "sliding_window_pattern", folder, 6), files.size(hf, "num_hidden_layers", folder)
    sliding = [(layer + 1) % period > 0 for layer in range(n_layer)]
    return read(
        hf,
        folder,
        precision,
        windows=decoder_config.windows(hf, folder, sliding),
        rotaries=_rotaries(hf, files.size(hf, "head_dim", folder), folder),
        scale=files.positive(hf, "query_pre_attn_scalar", 0, folder) ** -0.5,
        logit_cap=optional(hf, "final_logit_softcapping", folder),
        qk_norm=True,
        post_norms=True,
        reads=READS,
    )


def _text_half(hf: dict, folder: Path) -> dict:
    """The entries of the text model, which a file of the whole has as `text_config`."""
    text = hf.get("text_config")
    if not isinstance(text, dict) or text.get("model_type", "gemma3_text") != "gemma3_text":
        raise BadInput(f"{folder}/config.json says text_config is {text!r}: only gemma3_text is supported")
    return text | {"model_type": "gemma3", "tie_word_embeddings": hf.get("tie_word_embeddings", True)}


def _rotaries(hf: Mapping, head_dim: int, folder: Path) -> tuple[Rotary, Rotary]:
    """Of layers without and with a window: newer files have a block for each, older ones `rope_local_base_freq`."""
    blocks = hf.get("rope_parameters") or {}
    if not isinstance(blocks, Mapping) or blocks.keys() - {decoder_config.FULL, decoder_config.SLIDING}:
        raise BadInput(
            f"{folder}/config.json says rope_parameters is {blocks!r}: give a block for {decoder_config.FULL} and one "
            f"for {decoder_config.SLIDING}"
        )
    hf = {name: value for name, value in hf.items() if name != "rope_parameters"}
    whole = hf | {"rope_parameters": blocks.get(decoder_config.FULL)}
    local = {name: value for name, value in hf.items() if name not in ("rope_scaling", "rope_theta")}
    local |= {"rope_parameters": blocks.get(decoder_config.SLIDING)}
    names = {"rope_local_base_freq": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    return rotary.read(whole, head_dim, folder, 1e6), rotary.read(local, head_dim, folder, 1e4, names=names)


def from_hf(tensors, config: DecoderConfig, shown="the model") -> dict:
    # Of models that read images older files have `language_model.model.`, newer ones `model.language_model.`.
    if config.architecture == "gemma3":
        bare = lambda name: name.removeprefix("model.").removeprefix("language_model.")
        tensors = {bare(name): x for name, x in tensors.items() if not bare(name).startswith(IMAGES)}
    return decoder.from_hf(tensors, config, shown)


ARCHITECTURE = decoder.architecture(read_config, from_hf)
