"""Models from folders: every layout loads alike, everything broken is BadInput."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm.gpt2 import ACTIVATIONS, from_hf, hf_names, to_hf
from jaxsae.lm.weights import read_config
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


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_weights_of_any_precision_load_as_asked(tmp_path, dtype):
    tensors = {name: x.astype(dtype) for name, x in tiny.tensors().items()}
    params = lms.load(str(tiny.write(tmp_path / "model", tensors, tiny.config()))).params
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
    want = tensors["transformer.h.1.mlp.c_fc.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["h_1"]["c_fc"]["kernel"], want)


def test_an_untied_model_unembeds_with_its_own_matrix(tmp_path):
    head = np.random.default_rng(0).normal(size=(tiny.VOCABULARY, tiny.WIDTH)).astype(np.float32)
    config = tiny.config(tie_word_embeddings=False)
    folder = tiny.write(tmp_path / "model", tiny.tensors() | {"lm_head.weight": head}, config)
    untied, tied = lms.load(str(folder)), tiny.model()
    x = np.random.default_rng(1).normal(size=(2, tiny.WIDTH)).astype(np.float32)
    np.testing.assert_allclose(untied.unembed(x), x @ head.T, atol=1e-4)
    np.testing.assert_allclose(tied.unembed(x), x @ tied.params["wte"]["embedding"].T, atol=1e-4)
    # A tied one does not look at a head that lies beside it, as the hub's files have one.
    folder = tiny.write(tmp_path / "tied", tiny.tensors() | {"lm_head.weight": head}, tiny.config())
    equal(lms.load(str(folder)).params, tied.params)


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


def holds(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def lacks(name):
    return lambda folder: (folder / name).unlink()


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def a_shard_is_missing(folder):
    shards(folder, tiny.tensors())
    (folder / "model-00002-of-00003.safetensors").unlink()


INDEX = "model.safetensors.index.json"
BROKEN = {
    "no config": (lacks("config.json"), "config.json"),
    "config not JSON": (holds("config.json", b"{model"), "config.json"),
    "config not UTF-8": (holds("config.json", b"\xff\xfe{}"), "config.json"),
    "config not an object": (holds("config.json", b"[1]"), "config.json"),
    "another model": (says(model_type="llama"), "'llama': only gpt2"),
    "no model type": (says(model_type=None), "only gpt2"),
    "unknown activation function": (says(activation_function="swiglu"), "'swiglu'.*gelu_new"),
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


def test_a_hub_model_of_which_only_a_part_is_cached_is_bad_input(hub):
    cached(hub, "somebody/part", [tiny.FOLDER / "config.json"])
    with pytest.raises(BadInput, match="safetensors"):
        lms.load("somebody/part")


def test_a_folder_goes_before_a_hub_name(hub, tmp_path, monkeypatch):
    cached(hub, "tiny", [])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.FOLDER, "tiny")
    equal(lms.load("tiny").params, tiny.model().params)
