"""What config.json says of a model with the block of decoder.py, in the words that its families share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.lm import hf as files
from jaxsae.lm import rotary
from jaxsae.lm.decoder import DecoderConfig
from jaxsae.lm.layers import ACTIVATIONS
from jaxsae.lm.rotary import Rotary
from jaxsae.lm.rotary_attention import Attention
from jaxsae.precision import Precision

FULL, SLIDING = "full_attention", "sliding_attention"

# Entries that change the mathematics of families that have them. In another family they mean that the file is not what
# its model_type says.
OWN = (
    "attention_multiplier",
    "attn_logit_softcapping",
    "clip_qkv",
    "embedding_multiplier",
    "final_logit_softcapping",
    "layer_types",
    "logit_scale",
    "logits_scaling",
    "mlp_bias",
    "num_experts",
    "num_local_experts",
    "qk_layernorm",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_interleaved",
    "sliding_window",
    "use_qk_norm",
)


def read(
    hf: Mapping,
    folder: Path,
    precision: Precision,
    *,
    windows: tuple[int | None, ...] = (),
    rotaries: tuple[Rotary, Rotary | None] | None = None,
    scale: float | None = None,
    cap: float | None = None,
    biases: tuple[bool, bool] | None = None,
    qk_norm: bool = False,
    reads: Sequence[str] = (),
    gain_offset: float = 0.0,
    tied: bool = False,
    activation: str | None = None,
    **fields,
) -> DecoderConfig:
    """The config that config.json, `hf`, states.

    A family gives what it has of its own: the windows of its layers, rotary embeddings (of all layers, of those with
    windows), the attention's scale (default: that of the heads' width), cap and biases (of queries, keys and values; of
    the output; default: `attention_bias`), whether embeddings are tied by default, other fields of the config, and what
    it `reads` of OWN; the others are refused.
    """
    size = lambda name, default=None: files.size(hf, name, folder, default)
    d, heads = size("hidden_size"), size("num_attention_heads")
    if hf.get("head_dim") is None and d % heads:
        raise BadInput(f"{folder}/config.json: hidden_size {d} is not a multiple of num_attention_heads {heads}")
    kv_heads, head_dim = size("num_key_value_heads", heads), size("head_dim", d // heads)
    if heads % kv_heads:
        raise BadInput(
            f"{folder}/config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    files.refuse(hf, ("use_bidirectional_attention", "add_cross_attention", "pruned_heads"), folder)
    refuse_others(hf, reads, folder)
    qkv_bias, o_bias = biases or 2 * (files.flag(hf, "attention_bias", False, folder),)
    every, local = rotaries or (whole_heads(hf, head_dim, folder), None)
    eps = files.positive(hf, "rms_norm_eps", 1e-6, folder)
    attention = Attention(
        n_head=heads,
        n_kv_head=kv_heads,
        head_dim=head_dim,
        rotary=every,
        local_rotary=local,
        scale=head_dim**-0.5 if scale is None else scale,
        windows=windows,
        cap=cap,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        qk_norm=qk_norm,
        norm_eps=eps,
        gain_offset=gain_offset,
    )
    return DecoderConfig(
        architecture=hf["model_type"],
        vocab_size=size("vocab_size"),
        n_ctx=size("max_position_embeddings"),
        d_model=d,
        n_layer=size("num_hidden_layers"),
        n_inner=size("intermediate_size"),
        attention=attention,
        activation=activation or files.choice(hf, "hidden_act", "silu", ACTIVATIONS, folder),
        norm_eps=eps,
        gain_offset=gain_offset,
        tied=files.flag(hf, "tie_word_embeddings", tied, folder),
        precision=precision,
        **fields,
    )


def refuse_others(hf: Mapping, reads: Sequence[str], folder: Path):
    """Raises BadInput if config.json, `hf`, has one of OWN that the family does not read."""
    # A factor of 1 is none, and layers without windows are what such families have.
    plain = lambda value: (
        (value == 1 and value is not True) or (isinstance(value, list) and value == [FULL] * len(value))
    )
    files.refuse(hf, [name for name in OWN if name not in reads and not plain(hf.get(name))], folder)


def whole_heads(hf: Mapping, head_dim: int, folder: Path) -> Rotary:
    """The rotary embedding that config.json, `hf`, states, of models that turn all channels of their heads."""
    found = rotary.read(hf, head_dim, folder)
    if 2 * len(found.frequencies) != head_dim:
        raise BadInput(
            f"{folder}/config.json: models of type {hf['model_type']} with a partial_rotary_factor other "
            "than 1 are not supported"
        )
    return found


def windows(hf: Mapping, folder: Path, sliding: Sequence[bool]) -> tuple[int | None, ...]:
    """The attention window of each layer, `sliding_window` or None; empty if none has one.

    Which layers have one `layer_types` says, and if it is absent, `sliding`.
    """
    n_layer, types = len(sliding), hf.get("layer_types")
    if types is None:
        types = [SLIDING if window else FULL for window in sliding]
    if not isinstance(types, list) or len(types) != n_layer:
        raise BadInput(f"{folder}/config.json says layer_types is {types!r}: it must list all {n_layer} layers")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise BadInput(f"{folder}/config.json has {kind!r} in layer_types: allowed are {FULL} and {SLIDING}")
    if SLIDING not in types:
        return ()
    window = files.size(hf, "sliding_window", folder)
    return tuple(window if kind == SLIDING else None for kind in types)
