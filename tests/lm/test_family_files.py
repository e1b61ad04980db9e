"""What the rotary families read: config.json of older and newer files, weights under older names, what is refused.

The models are those of make_golden_families.py, as transformers' `save_pretrained` wrote them.
"""

import importlib
import json
import math
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm import architecture, rotary
from jaxsae.lm.weights import read_config
from tests.lm import tiny

FOLDER = Path(__file__).parent / "families"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def facts(name, **changes):
    """config.json as a dict; a value of `absent` leaves the entry out."""
    entries = json.loads((FOLDER / name / "config.json").read_text()) | changes
    return {key: value for key, value in entries.items() if value != "absent"}


@pytest.fixture
def read(tmp_path):
    """read(facts) -> the config."""

    def read(entries):
        (tmp_path / "config.json").write_text(json.dumps(entries))
        return read_config(tmp_path)

    return read


def older(entries):
    """config.json as releases before transformers 5 wrote it."""
    if "text_config" in entries:
        return entries | {"text_config": older(entries["text_config"])}
    old = {key: value for key, value in entries.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    blocks, kind = entries["rope_parameters"], entries["model_type"]
    if kind == "gemma3_text":
        old |= {"rope_local_base_freq": blocks["sliding_attention"]["rope_theta"]}
        old |= {"sliding_window_pattern": entries["layer_types"].index("full_attention") + 1}
        blocks = blocks["full_attention"]
    theta, share = ("rotary_emb_base", "rotary_pct") if kind == "gpt_neox" else ("rope_theta", "")
    old |= {"torch_dtype": entries.get("dtype"), theta: blocks["rope_theta"]}
    if share:
        old[share] = blocks["partial_rotary_factor"]
    scaling = {key: value for key, value in blocks.items() if key not in ("rope_theta", "partial_rotary_factor")}
    kind = scaling.pop("rope_type")
    return old | {"rope_scaling": None if kind == "default" else {"type": kind, **scaling}}


@pytest.mark.parametrize("name", NAMES)
def test_older_and_newer_files_say_the_same(name, read):
    old = older(facts(name))
    assert "rope_parameters" not in str(old) and "layer_types" not in str(old)
    assert read(old) == read(facts(name))


def test_entries_that_are_absent_mean_what_transformers_means(read):
    without = lambda name, *names: read(facts(name, **dict.fromkeys(names, "absent")))
    assert without("llama", "num_key_value_heads").attention.n_kv_head == 4
    assert read(facts("llama", num_key_value_heads=None)).attention.n_kv_head == 4
    assert without("llama", "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings") == read(facts("llama"))
    assert read(facts("llama", layer_types=2 * ["full_attention"], logits_scaling=1.0)) == read(facts("llama"))
    assert without("mistral", "sliding_window").attention.windows == (4096, 4096)
    assert read(facts("mistral", sliding_window=None)).attention.windows == ()
    assert without("qwen2", "layer_types", "use_sliding_window").attention.windows == ()
    assert read(facts("qwen2", layer_types=None)) == read(facts("qwen2"))
    assert without("qwen3", "head_dim").attention.head_dim == 128
    assert without("gemma2", "layer_types") == read(facts("gemma2"))
    capless = read(facts("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None))
    assert capless.attention.cap is capless.logit_cap is None
    plain = without("gemma2", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
    assert (plain.attention.cap, plain.logit_cap, plain.attention.scale) == (50, 30, 1 / 16)
    assert read(facts("gemma", hidden_act="gelu", hidden_activation=None)) == read(facts("gemma"))
    assert read(facts("gemma", hidden_act="gelu", hidden_activation="gelu_pytorch_tanh")) == read(facts("gemma"))
    neox = without("gpt_neox", "rope_parameters").attention.rotary.frequencies
    np.testing.assert_allclose(neox, [1, 0.01])


def test_the_text_half_of_a_model_that_reads_images_may_say_little(read):
    """As the files of Gemma 3 4B do."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    config = read({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}})
    assert (config.d_model, config.n_layer, config.vocab_size, config.n_ctx) == (2560, 34, 262_208, 131_072)
    a = config.attention
    assert (a.n_head, a.n_kv_head, a.head_dim, a.scale) == (8, 4, 256, 1 / 16)
    assert config.tied and a.windows == tuple(None if layer % 6 == 5 else 1024 for layer in range(34))
    np.testing.assert_allclose(a.rotary.frequencies, 1e6 ** -(np.arange(128) / 128) / 8)
    np.testing.assert_allclose(a.local_rotary.frequencies, 1e4 ** -(np.arange(128) / 128))


def test_llama3_keeps_fast_pairs_and_slows_slow_ones():
    """Llama 3.1's numbers: wavelengths below 2048 are kept, above 8192 eight times as long."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    hf = {"max_position_embeddings": 131072, "rope_theta": 5e5, "rope_scaling": scaling}
    hf["rope_scaling"]["original_max_position_embeddings"] = 8192
    plain = 5e5 ** -(np.arange(0, 128, 2) / 128)
    ratio = np.array(rotary.read(hf, 128, "m").frequencies) / plain
    wavelength = 2 * math.pi / plain
    np.testing.assert_allclose(ratio[wavelength < 2048], 1)
    np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 8)
    between = ratio[(wavelength > 2048) & (wavelength < 8192)]
    assert len(between) > 3 and (np.diff(between) < 0).all() and ((between > 1 / 8) & (between < 1)).all()


ROPE = "rope_parameters"
REFUSED = {
    "dynamic rotary": ("llama", {ROPE: {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'.*llama3"),
    "older kind": ("llama", {ROPE: None, "rope_scaling": {"type": "longrope"}}, "'longrope'.*allowed are default"),
    "two kinds": ("llama", {ROPE: {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "'linear' and type 'yarn'"),
    "a kind that is no word": ("llama", {ROPE: {"rope_type": float("nan")}}, "rope_type is nan: allowed"),
    "no factor": ("llama", {ROPE: {"rope_type": "linear"}}, "factor is None"),
    "factor in words": ("llama", {ROPE: {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
    "unknown setting": ("llama", {ROPE: {"rope_type": "yarn", "mrope_section": [1]}}, r"mrope_section is \[1\].*yarn"),
    "scales of DeepSeek": ("qwen2", {ROPE: {"rope_type": "yarn", "mscale": 1.0}}, "mscale is 1.0: rope_type yarn"),
    "bands crossed": (
        "llama",
        {ROPE: {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
        "low_freq_factor 4 must be below",
    ),
    "two bases": ("mistral", {"rope_theta": 5e5}, "rope_theta 10000.0 and rope_theta 500000.0"),
    "two shares": ("gpt_neox", {"rotary_pct": 0.5}, "partial_rotary_factor 0.25 and rotary_pct 0.5"),
    "interleaved pairs": ("llama", {"rope_interleaved": True}, "rope_interleaved is True"),
    "two blocks": ("mistral", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "both .*, which differ"),
    "partly turned": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1"),
    "block by layers": ("llama", {ROPE: {"full_attention": {"rope_type": "default"}}}, "one set of rotary settings"),
    "one block for two": ("gemma3_text", {ROPE: {"rope_type": "default"}}, "a block for full_attention"),
    "odd pairs": ("gpt_neox", {ROPE: {"partial_rotary_factor": 0.2}}, "0.2 of heads of width 16 is 3 channels"),
    "window of a Llama": ("llama", {"sliding_window": 4096}, "sliding_window is 4096"),
    "layers of a Llama": ("llama", {"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
    "window of a Gemma": ("gemma", {"sliding_window": 4096}, "sliding_window is 4096"),
    "cap of a Qwen": ("qwen2", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    "biases of a Gemma": ("gemma2", {"mlp_bias": True}, "mlp_bias is True"),
    "experts of a GPT-NeoX": ("gpt_neox", {"num_experts": 8}, "num_experts is 8"),
    "a factor of logits": ("llama", {"logits_scaling": 8.0}, "logits_scaling is 8.0"),
    "chunks": ("qwen3", {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention'.*sliding_attention"),
    "too few layers": ("qwen2", {"layer_types": ["full_attention"]}, "all 3 layers"),
    "windows without width": ("qwen2", {"use_sliding_window": False}, "sliding_window is None"),
    "layers of a Mistral": ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "all its layers"),
    "biases of a Mistral": ("mistral", {"attention_bias": True}, "attention_bias is True"),
    "bias in words": ("llama", {"attention_bias": "yes"}, "attention_bias is 'yes'"),
    "later layers": ("qwen2", {"max_window_layers": None}, "max_window_layers is None"),
    "groups": ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 .* num_key_value_heads 3"),
    "heads": ("llama", {"num_attention_heads": 5, "head_dim": None}, "hidden_size 32 .* num_attention_heads 5"),
    "heads of a GPT-NeoX": ("gpt_neox", {"num_attention_heads": 5}, "hidden_size 32 .* num_attention_heads 5"),
    "width of a GPT-NeoX": ("gpt_neox", {"head_dim": 20}, "head_dim 20"),
    "activation": ("llama", {"hidden_act": "relu2"}, "hidden_act is 'relu2'"),
    "two activations": ("gemma2", {"hidden_act": "silu"}, "hidden_act 'silu' and hidden_activation 'gelu_pytorch"),
    "both ways": ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    "cap of Gemma 3": ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    "cap in words": ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping is '30'"),
    "scale": ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    "epsilon": ("llama", {"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
    "no layers": ("mistral", {"num_hidden_layers": "absent"}, "does not say 'num_hidden_layers'"),
    "another text half": ("gemma3", {"text_config": {"model_type": "gemma4_text"}}, "only gemma3_text is supported"),
    "another family": ("qwen3", {"model_type": "qwen3_moe"}, "'qwen3_moe': only gpt2.*llama.*gemma3"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_change_the_mathematics_is_refused_by_name(what, read, tmp_path):
    name, changes, message = REFUSED[what]
    with pytest.raises(BadInput, match=message) as error:
        read(facts(name, **changes))
    assert str(tmp_path) in str(error.value)


# Entries of transformers' config classes that change nothing in a forward pass of a text.
INERT = """attention_dropout boi_token_index bos_token_id classifier_dropout eoi_token_index eos_token_id hidden_dropout
image_token_index initializer_range is_decoder mm_tokens_per_image pad_token_id pretraining_tp use_cache vision_config
chunk_size_feed_forward id2label is_encoder_decoder label2id output_attentions output_hidden_states problem_type
return_dict architectures dtype _name_or_path transformers_version model_type""".split()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(architecture.ARCHITECTURES.keys() - {"gpt2", "gpt_neo"}))
def test_every_entry_of_transformers_config_is_read_or_known_to_change_nothing(kind):
    """So that one that a new version brings is not ignored."""
    from transformers import CONFIG_MAPPING

    module = importlib.import_module(architecture.ARCHITECTURES[kind])
    shared = ["rotary"] if kind == "gpt_neox" else ["rotary", "decoder_config"]
    shared += [name for name, kinds in BASES.items() if kind in kinds]
    sources = [Path(module.__file__), *(Path(architecture.__file__).with_name(f"{name}.py") for name in shared)]
    known = "".join(path.read_text() for path in sources)
    entries = CONFIG_MAPPING[kind]().to_dict().keys() - {*INERT} - {"_sliding_window_pattern"}
    assert [entry for entry in entries if f'"{entry}"' not in known] == []


# Families that others are built on.
BASES = {"gemma": ("gemma2", "gemma3", "gemma3_text"), "qwen2": ("qwen3",)}


def tensors(name):
    return {key: x for path in sorted((FOLDER / name).glob("*.safetensors")) for key, x in load_file(path).items()}


def same(folder, name):
    jax.tree.map(np.testing.assert_array_equal, lms.load(str(folder)).params, lms.load(str(FOLDER / name)).params)


def renamed(name, rename):
    return {rename(key): x for key, x in tensors(name).items()}


def test_weights_are_bfloat16_in_one_file_or_float32_in_several():
    assert {x.dtype for x in tensors("llama").values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert {x.dtype for x in tensors("qwen3").values()} == {np.dtype(np.float32)}
    assert len([*(FOLDER / "qwen3").glob("*.safetensors")]) == 3
    params = lms.load(str(FOLDER / "llama")).params
    want = np.asarray(tensors("llama")["model.layers.1.mlp.down_proj.weight"], np.float32)
    np.testing.assert_array_equal(params["h_1"]["mlp"]["down"]["kernel"], want.T)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_weights_may_have_the_names_of_older_files(tmp_path):
    write = lambda name, tensors: tiny.write(tmp_path / name, tensors, facts(name))
    # Causal masks and frequencies are not weights; a tied head may be there; a body may be saved without its head.
    old = renamed("gpt_neox", lambda key: key.replace("lm_head", "embed_out"))
    assert "embed_out.weight" in old
    for layer in range(2):
        prefix = f"gpt_neox.layers.{layer}.attention"
        old[f"{prefix}.bias"] = np.tril(np.ones((1, 1, 16, 16), np.uint8))
        old[f"{prefix}.masked_bias"] = np.full((), -1e9, np.float32)
        old[f"{prefix}.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    same(write("gpt_neox", old), "gpt_neox")
    same(write("qwen2", renamed("qwen2", lambda key: key.removeprefix("model."))), "qwen2")
    tied = tensors("gemma2")
    same(write("gemma2", tied | {"lm_head.weight": tied["model.embed_tokens.weight"].copy()}), "gemma2")
    moved = lambda key: key.replace("model.language_model.", "language_model.model.").removeprefix("model.")
    old = renamed("gemma3", moved)
    assert {key.split(".")[0] for key in old} == {"language_model", "vision_tower", "multi_modal_projector"}
    same(write("gemma3", old), "gemma3")


Q, K = "model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
QKV = "gpt_neox.layers.1.attention.query_key_value"
BROKEN = {
    "queries of another shape": ("llama", {f"{Q}.weight": (32, 16)}, r"q_proj\.weight of shape \[32, 16\].*\[32, 32\]"),
    "keys for every head": ("llama", {f"{K}.weight": (32, 32)}, r"k_proj\.weight of shape \[32, 32\].*\[16, 32\]"),
    "no gate": ("mistral", {"model.layers.0.mlp.gate_proj.weight": None}, r"no weights called layers\.0\.mlp\.gate"),
    "no bias": ("qwen2", {f"{Q}.bias": None}, r"no weights called layers\.1\.self_attn\.q_proj\.bias"),
    "a bias": ("llama", {f"{Q}.bias": (32,)}, r"q_proj\.bias, of which its config\.json says nothing"),
    "a norm of queries": ("llama", {"model.layers.0.self_attn.q_norm.weight": (8,)}, "q_norm.weight, of which"),
    "one layer more": ("llama", {"model.layers.2.input_layernorm.weight": (32,)}, r"layers\.2.*says nothing"),
    "a larger vocabulary": (
        "gemma",
        {"model.embed_tokens.weight": (101, 32)},
        r"embed_tokens.*\[101, 32\].*\[97, 32\]",
    ),
    "another head": ("gemma2", {"lm_head.weight": (97, 32)}, "tied.*tie_word_embeddings false"),
    "no head": ("llama", {"lm_head.weight": None}, "no weights called lm_head.weight"),
    "rows of three": ("gpt_neox", {f"{QKV}.weight": (64, 32)}, r"query_key_value\.weight.*\[64, 32\].*\[96, 32\]"),
    "no rows": ("gpt_neox", {f"{QKV}.weight": None}, "query_key_value.weight"),
    "whole numbers": ("llama", {f"{Q}.weight": np.int8}, "int8: quantised models are not supported"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_weights_that_do_not_fit_config_json_are_bad_input(what, tmp_path):
    name, changes, message = BROKEN[what]
    entries = tensors(name)
    for key, change in changes.items():
        if change is None:
            del entries[key]
        elif isinstance(change, tuple):
            entries[key] = np.zeros(change, np.float32)
        else:
            entries[key] = entries[key].astype(change)
    folder = tmp_path / "broken-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(facts(name)))
    save_file(entries, folder / "model.safetensors")
    with pytest.raises(BadInput, match=message) as error:
        lms.load(str(folder))
    assert "broken-model" in str(error.value)
