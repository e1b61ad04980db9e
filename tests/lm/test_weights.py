"""Models from folders: every layout loads alike, everything broken is BadInput."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm.gpt2 import ACTIVATIONS, from_hf, hf_names, to_hf
from jaxsae.lm.weights import find_folder, read_config
from tests.lm import tiny

equal = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)


def shards(folder, tensors, count=3):
    """The same tensors in several files and an index, in place of model.safetensors."""
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = dict(list(tensors.items())[i::count])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("masks", [False, True], ids=["", "masks"])
@pytest.mark.parametrize("prefix", ["transformer.", ""], ids=["prefix", "bare"])
@pytest.mark.parametrize("sharded", [False, True], ids=["one", "sharded"])
def test_every_layout_of_a_folder_loads_alike(tmp_path, sharded, prefix, masks):
    tensors = {prefix + n.removeprefix("transformer."): x for n, x in tiny.tensors().items()}
    if masks:
        # Not to be taken for attention's biases, which have `c_` in their names.
        causal = np.tril(np.ones((1, 1, tiny.POSITIONS, tiny.POSITIONS), np.float32))
        for layer in range(tiny.LAYERS):
            tensors[f"{prefix}h.{layer}.attn.bias"] = causal
            tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.full((), -1e4, np.float32)
    folder = tiny.write(tmp_path / "model", tensors, tiny.config())
    if sharded:
        shards(folder, tensors)
    have, want = lms.load(str(folder)), tiny.model()
    assert have.config == want.config and have.folder == str(folder)
    equal(have.params, want.params)


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("golden", np.float16),
        ("golden", ml_dtypes.bfloat16),
        ("golden_neo", ml_dtypes.bfloat16),
        ("golden", np.float64),
    ],
)
def test_weights_in_half_or_double_precision_run_in_float32(tmp_path, dtype, name):
    """As the model whose float32 weights are rounded in the same way."""
    folder = tiny.FOLDER.parent / name
    stored = {key: x.astype(dtype) for key, x in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    lm = lms.load(str(tiny.write(tmp_path / "model", stored, config)))
    assert {str(x.dtype) for x in jax.tree.leaves(lm.params)} == {"float32"}
    rounded = {key: x.astype(np.float32) for key, x in stored.items()}
    same = lms.load(str(tiny.write(tmp_path / "same", rounded, config)))
    equal(lm.params, same.params)
    tokens = np.load(folder / "golden.npz")["tokens"]
    logits = lm.run(tokens)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, same.run(tokens))


def scaled(tensors, factor):
    """The tensors with the queries of layer i multiplied by factor(i)."""
    tensors = dict(tensors)
    for layer in range(tiny.LAYERS):
        for part in ("weight", "bias"):
            x = tensors[name := f"transformer.h.{layer}.attn.c_attn.{part}"].copy()
            x[..., : tiny.WIDTH] *= factor(layer)
            tensors[name] = x
    return tensors


# What config.json says about attention's scale, and what multiplies the queries of layer i instead.
SCALES = {
    "by layer": ({"scale_attn_by_inverse_layer_idx": True}, lambda i: 1 / (i + 1)),
    "none": ({"scale_attn_weights": False}, lambda i: (tiny.WIDTH / 4) ** 0.5),
    "in another order": ({"reorder_and_upcast_attn": True}, lambda i: 1),
}


@pytest.mark.parametrize("what", SCALES)
def test_attention_is_scaled_as_config_json_says(tmp_path, what):
    changes, factor = SCALES[what]
    lm = lms.load(str(tiny.write(tmp_path / "by config", tiny.tensors(), tiny.config(**changes))))
    same = lms.load(str(tiny.write(tmp_path / "by weights", scaled(tiny.tensors(), factor), tiny.config())))
    tokens = tiny.random_tokens(2)
    np.testing.assert_allclose(lm.run(tokens), same.run(tokens), atol=2e-5)


def test_an_untied_model_unembeds_with_its_own_matrix(tmp_path):
    head = np.random.default_rng(0).normal(size=(tiny.VOCABULARY, tiny.WIDTH)).astype(np.float32)
    config = tiny.config(tie_word_embeddings=False)
    folder = tiny.write(tmp_path / "model", tiny.tensors() | {"lm_head.weight": head}, config)
    untied, tied = lms.load(str(folder)), tiny.model()
    x = np.random.default_rng(1).normal(size=(2, tiny.WIDTH)).astype(np.float32)
    np.testing.assert_allclose(untied.unembed(x), x @ head.T, atol=1e-4)
    np.testing.assert_allclose(tied.unembed(x), x @ tied.params["wte"]["embedding"].T, atol=1e-4)
    # A tied one may have its embedding a second time as its head, as the hub's files do, but no other head.
    beside = lambda head: tiny.write(tmp_path / "tied", tiny.tensors() | {"lm_head.weight": head}, tiny.config())
    equal(lms.load(str(beside(tiny.tensors()["transformer.wte.weight"]))).params, tied.params)
    with pytest.raises(BadInput, match=r"lm_head\.weight that is not its wte\.weight.*tie_word_embeddings false"):
        lms.load(str(beside(head)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_function_loads_and_is_used(tmp_path, name):
    folder = tiny.write(tmp_path / "m", tiny.tensors(), tiny.config(activation_function=name))
    neurons = lambda lm: lm.prefix(tiny.random_tokens(1), "blocks.0.mlp.hook_post")
    same = np.array_equal(neurons(lms.load(str(folder))), neurons(tiny.model()))
    assert same == (name in ("gelu_new", "gelu_pytorch_tanh"))


def test_config_entries_that_are_absent_have_gpt2s_defaults(tmp_path):
    optional = ["activation_function", "layer_norm_epsilon", "scale_attn_weights", "n_inner"]
    optional += ["scale_attn_by_inverse_layer_idx", "tie_word_embeddings"]
    folder = tiny.write(tmp_path / "m", tiny.tensors(), tiny.config(**dict.fromkeys(optional)))
    assert read_config(folder) == read_config(tiny.FOLDER)


def test_to_hf_and_from_hf_are_inverse():
    lm = tiny.model()
    tensors = to_hf(lm.params, lm.config)
    assert tensors.keys() == tiny.tensors().keys()
    equal(tensors, tiny.tensors())
    equal(from_hf(tensors, lm.config), lm.params)


def test_the_embedded_names_cover_every_parameter():
    lm = tiny.model()
    paths = {tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(lm.params)}
    assert set(hf_names(lm.config).values()) == paths


# Everything that can be wrong with a folder.


def without(name):
    def change(folder):
        tensors = tiny.tensors()
        del tensors[f"transformer.{name}"]
        save_file(tensors, folder / "model.safetensors")

    return change


def misshapen(name, shape):
    def change(folder):
        tensors = tiny.tensors() | {f"transformer.{name}": np.zeros(shape, np.float32)}
        save_file(tensors, folder / "model.safetensors")

    return change


def says(**changes):
    return lambda folder: (folder / "config.json").write_text(json.dumps(tiny.config(**changes)))


def stored_as(dtype):
    def change(folder):
        save_file({name: x.astype(dtype) for name, x in tiny.tensors().items()}, folder / "model.safetensors")

    return change


def holds(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def lacks(name):
    return lambda folder: (folder / name).unlink()


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def of_torch(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def a_shard_is_missing(folder):
    shards(folder, tiny.tensors())
    (folder / "model-00002-of-00003.safetensors").unlink()


INDEX = "model.safetensors.index.json"
BROKEN = {
    "no config": (lacks("config.json"), "config.json"),
    "config not JSON": (holds("config.json", b"{model"), "config.json"),
    "config not UTF-8": (holds("config.json", b"\xff\xfe{}"), "config.json"),
    "config not an object": (holds("config.json", b"[1]"), "config.json"),
    "another model": (says(model_type="mamba"), "'mamba': only"),
    "no model type": (says(model_type=None), "only "),
    "unknown activation function": (says(activation_function="swiglu"), "'swiglu'.*gelu_new"),
    "attention to another model": (says(add_cross_attention=True), "add_cross_attention is True.*not supported"),
    "heads that were removed": (says(pruned_heads={"1": [0]}), "pruned_heads is .*not supported"),
    "quantised": (says(quantization_config={"bits": 4}), "quantization_config is .*not supported"),
    "code of its own": (says(auto_map={"AutoModelForCausalLM": "m.M"}), "auto_map is .*not supported"),
    "scale not a truth value": (says(scale_attn_by_inverse_layer_idx="no"), "scale_attn_by_inverse_layer_idx is 'no'"),
    "tied not a truth value": (says(tie_word_embeddings=1), "tie_word_embeddings is 1: .* true or false"),
    "no epsilon": (says(layer_norm_epsilon=0), "layer_norm_epsilon is 0: .* positive number"),
    "whole numbers": (stored_as(np.int8), "of type int8: quantised"),
    "eight bits": (stored_as(ml_dtypes.float8_e4m3fn), "in F8_E4M3, which is not read: save it in F32"),
    "no width": (says(n_embd=None), "n_embd"),
    "width not a number": (says(n_embd="32"), "n_embd is '32'"),
    "no layers": (says(n_layer=0), "n_layer is 0"),
    "heads that do not divide": (says(n_head=5), "n_embd 32 .* n_head 5"),
    "more layers than weights": (says(n_layer=4), r"h\.3\."),
    "another vocabulary": (says(vocab_size=102), r"wte.*\[101, 32\].*\[102, 32\]"),
    "another number of positions": (says(n_positions=17), r"wpe.*\[16, 32\].*\[17, 32\]"),
    "another number of neurons": (says(n_inner=64), r"c_fc.*\[128\].*\[64\]"),
    "untied without a head": (says(tie_word_embeddings=False), r"lm_head\.weight"),
    "no embedding": (without("wte.weight"), r"wte\.weight"),
    "no bias": (without("h.1.attn.c_proj.bias"), r"h\.1\.attn\.c_proj\.bias"),
    "no norm": (without("ln_f.weight"), r"ln_f\.weight"),
    "misshapen": (misshapen("h.0.mlp.c_proj.weight", (32, 128)), r"\[32, 128\].*\[128, 32\]"),
    "scalar": (misshapen("h.2.ln_1.bias", ()), r"ln_1.*\[\].*\[32\]"),
    "no weights": (lacks("model.safetensors"), "safetensors"),
    "weights of torch.save": (of_torch, "convert the checkpoint by .*save_pretrained.*safe_serialization=True"),
    "truncated": (truncated, "safetensors"),
    "empty": (holds("model.safetensors", b""), "safetensors"),
    "not safetensors": (holds("model.safetensors", b"\x80\x02}q\x00." * 100), "safetensors"),
    "a shard is missing": (a_shard_is_missing, "model-00002"),
    "index not JSON": (holds(INDEX, b"{"), "safetensors"),
    "index not an object": (holds(INDEX, b"[]"), "safetensors"),
    "index without a map": (holds(INDEX, b"{}"), "weight_map"),
    "index with a list": (holds(INDEX, b'{"weight_map": ["model.safetensors"]}'), "safetensors"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_bad_input(tmp_path, what):
    breaks, message = BROKEN[what]
    folder = tmp_path / "broken-model"
    shutil.copytree(tiny.FOLDER, folder)
    breaks(folder)
    with pytest.raises(BadInput, match=message) as error:
        lms.load(str(folder))
    assert "broken-model" in str(error.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing", "~/nothing", "a/b/c"])
def test_a_folder_that_does_not_exist_is_bad_input_and_not_asked_of_the_hub(name, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(BadInput, match=r"no such folder.*embedded") as error:
        lms.load(name)
    assert name in str(error.value)


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        lms.load(str(tiny.FOLDER / "model.safetensors"))


# The hub, without a network: huggingface_hub reads the environment on import.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, offline."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub, name, files):
    """Files as huggingface_hub keeps them: blobs, a snapshot of links to them, a ref to that."""
    folder, sha = hub / f"models--{name.replace('/', '--')}", "0123456789abcdef" * 2 + "01234567"
    snapshot = folder / "snapshots" / sha
    for part in (folder / "blobs", folder / "refs", snapshot):
        part.mkdir(parents=True)
    (folder / "refs" / "main").write_text(sha)
    for path in files:
        shutil.copy(path, folder / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    return snapshot


@pytest.mark.parametrize("name", ["somebody/tiny", "tiny"])
def test_a_hub_name_in_the_local_cache_loads(hub, name):
    snapshot = cached(hub, name, [tiny.FOLDER / "config.json", tiny.FOLDER / "model.safetensors"])
    lm = lms.load(name)
    assert lm.folder == str(snapshot)
    equal(lm.params, tiny.model().params)


@pytest.mark.parametrize("name", ["somebody/nothing", "nothing", "not a name"])
def test_a_hub_name_that_cannot_be_reached_is_bad_input(hub, name):
    with pytest.raises(BadInput, match=f"{name} is neither embedded nor a folder.*hub"):
        lms.load(name)


# What repositories hold beside the weights, each in this and that.
HUB = """config.json generation_config.json model.safetensors model-00001-of-00002.safetensors README.md
model-00002-of-00002.safetensors model.safetensors.index.json pytorch_model.bin pytorch_model.bin.index.json
consolidated.safetensors original/consolidated.00.pth onnx/model.onnx onnx/config.json tf_model.h5 rust_model.ot
tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json vocab.json merges.txt added_tokens.json
chat_template.jinja flax_model.msgpack model.fp16.safetensors"""


def test_of_a_hub_model_nothing_but_what_is_read_is_fetched(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    fetched = []

    def snapshot(name, allow_patterns):
        fetched.extend(filter_repo_objects(HUB.split(), allow_patterns=allow_patterns))
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find_folder("somebody/model") == tmp_path
    weights = "model.safetensors model-00001-of-00002.safetensors model-00002-of-00002.safetensors"
    tokenizer = "tokenizer.json tokenizer_config.json special_tokens_map.json vocab.json merges.txt chat_template.jinja"
    assert {*fetched} == {"config.json", "model.safetensors.index.json", *weights.split(), *tokenizer.split()}


def test_a_hub_model_of_which_only_a_part_is_cached_is_bad_input(hub):
    cached(hub, "somebody/part", [tiny.FOLDER / "config.json"])
    with pytest.raises(BadInput, match="safetensors"):
        lms.load("somebody/part")


def test_a_folder_goes_before_a_hub_name(hub, tmp_path, monkeypatch):
    cached(hub, "tiny", [])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.FOLDER, "tiny")
    equal(lms.load("tiny").params, tiny.model().params)
