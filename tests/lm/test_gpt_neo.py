"""GPT-Neo: logits and every hook point against PyTorch's (make_golden.py), windows, processing, what is refused.

The model has two layers, one global and one local with a window of 4 of 12 positions.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm.gpt2 import to_hf
from jaxsae.lm.hooks import KINDS
from jaxsae.lm.weights import read_config
from tests.lm import tiny

FOLDER = Path(__file__).parent / "golden_neo"
HOOKS = [f"blocks.{layer}.{kind}" for layer in range(2) for kind in KINDS]
ATTENTION = "transformer.h.1.attn.attention"

# The two differ by 2.7e-6 at most on a CPU (activations are of size 1, logits of up to 4.4).
ATOL = 1e-4


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Each way to compute attention."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FOLDER / "golden.npz"))


def neo(dtype="float32"):
    return lms.load(str(FOLDER), dtype=dtype)


def config(**changes):
    """config.json as a dict; a value of `absent` leaves the entry out."""
    entries = json.loads((FOLDER / "config.json").read_text()) | changes
    return {name: value for name, value in entries.items() if value != "absent"}


def tensors():
    return load_file(FOLDER / "model.safetensors")


def test_logits_and_activations_equal_torch(dtype, golden):
    seen, logits = lms.capture(neo(dtype), golden["tokens"], HOOKS)
    assert set(golden) == {"tokens", "logits", "padded_logits", *HOOKS} and logits.dtype == dtype
    np.testing.assert_allclose(logits, golden["logits"], atol=ATOL, rtol=0)
    for hook in HOOKS:
        np.testing.assert_allclose(seen[hook], golden[hook], atol=ATOL, rtol=0, err_msg=hook)


@pytest.mark.parametrize("without", [{"windows": ()}, {"windows": (None, 5)}, {"scale_attn_weights": True}], ids=str)
def test_the_golden_tells_a_gpt_neo_from_its_neighbours(golden, without):
    lm = neo()
    assert lm.config.windows == (None, 4) and not lm.config.scale_attn_weights
    logits = lms.run(replace(lm, config=replace(lm.config, **without)), golden["tokens"])
    assert np.abs(logits - golden["logits"]).max() > 100 * ATOL


@pytest.mark.parametrize("layer, reach", [(0, 12), (1, 4)], ids=["global", "local"])
def test_a_token_reaches_just_the_window_after_it(dtype, golden, layer, reach):
    lm, start, stop = neo(dtype), f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_mid"
    stream = jnp.asarray(golden[start][:1], dtype)
    # [T positions read, T positions changed]
    moves = jnp.abs(jax.jacobian(lambda x: lms.advance(lm, x, start, stop))(stream)).sum((0, 2, 3, 5))
    behind = np.subtract.outer(np.arange(12), np.arange(12))
    np.testing.assert_array_equal(moves > 0, (behind >= 0) & (behind < reach))


def test_processing_keeps_log_probabilities_and_centres_the_stream(x64, golden):
    raw = neo("float64")
    processed = lms.process_weights(raw)
    assert processed.config.windows == (None, 4)
    a, b = (jax.nn.log_softmax(lm.run(golden["tokens"])) for lm in (raw, processed))
    np.testing.assert_allclose(a, b, atol=1e-12)
    for hook in (hook for hook in HOOKS if "resid" in hook):
        x, y = (lm.prefix(golden["tokens"], hook) for lm in (raw, processed))
        np.testing.assert_allclose(y, x - x.mean(-1, keepdims=True), atol=1e-12, err_msg=hook)


def test_the_causal_masks_of_older_checkpoints_are_not_weights(tmp_path):
    old = {name.removeprefix("transformer."): x for name, x in tensors().items()}
    for layer in range(2):
        old[f"h.{layer}.attn.attention.bias"] = np.tril(np.ones((1, 1, 16, 16), np.uint8))
        old[f"h.{layer}.attn.attention.masked_bias"] = np.full((), -1e9, np.float32)
    lm = lms.load(str(tiny.write(tmp_path / "old", old, config())))
    jax.tree.map(np.testing.assert_array_equal, lm.params, neo().params)


def test_sizes_windows_and_defaults_are_those_of_config_json(tmp_path):
    def read(**changes):
        (tmp_path / "config.json").write_text(json.dumps(config(**changes)))
        return read_config(tmp_path)

    def layers(*kinds, **changes):
        return read(attention_layers=kinds, attention_types="absent", **changes)

    assert read() == neo().config
    assert read(intermediate_size="absent", activation_function="absent", tie_word_embeddings="absent") == read()
    assert read(intermediate_size=24).n_inner == 24
    assert read(window_size="absent").windows == (None, 256)
    assert layers("local", "local").windows == (4, 4)
    assert layers("global", "global", window_size=None).windows == ()
    assert read(attention_layers="absent", attention_types=[[["local"], 1], [["global"], 1]]).windows == (4, None)
    # GPT-2's switches mean nothing here.
    assert read(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=True) == read()


def test_a_model_with_windows_is_not_written_as_a_gpt2():
    lm = neo()
    with pytest.raises(BadInput, match="windows"):
        to_hf(lm.params, lm.config)


def says(**changes):
    return lambda folder: (folder / "config.json").write_text(json.dumps(config(**changes)))


def layers(*kinds):
    return says(attention_layers=kinds, attention_types="absent")


def holds(**changes):
    """Tensors of the second layer's attention changed; None: left out."""

    def change(folder):
        entries = tensors() | {f"{ATTENTION}.{name.replace('__', '.')}": x for name, x in changes.items()}
        save_file({name: x for name, x in entries.items() if x is not None}, folder / "model.safetensors")

    return change


BROKEN = {
    "unknown attention": (layers("global", "sparse"), "'sparse'.*only global and local"),
    "attention of no type": (layers("global", None), "None.*only global and local"),
    "attention of one layer": (layers("global"), "attention_layers.*all 2 layers"),
    "attention of three layers": (says(attention_layers=None, attention_types=[[["global"], 3]]), "all 2 layers"),
    "no attention layers": (says(attention_layers="absent", attention_types="absent"), "attention_layers is None"),
    "attention types that attention layers deny": (says(attention_layers=["local", "local"]), "remove the wrong one"),
    "attention types not a list": (says(attention_types=[["global", "local"], 1]), "attention_types is .* give a list"),
    "epsilon not a number": (says(layer_norm_epsilon="1e-5"), "layer_norm_epsilon is '1e-5'"),
    "tied not a truth value": (says(tie_word_embeddings="false"), "tie_word_embeddings is 'false'"),
    "window not a number": (says(window_size="4"), "window_size is '4'"),
    "no window": (says(window_size=0), "window_size is 0"),
    "unknown activation function": (says(activation_function="swiglu"), "'swiglu'.*gelu_new"),
    "another model": (says(model_type="gptj"), "'gptj': only gpt2.*gpt_neo"),
    "model type not a name": (says(model_type=["gpt_neo"]), "only gpt2.*gpt_neo"),
    "no width": (says(hidden_size="absent"), "does not say 'hidden_size'"),
    "no number of layers": (says(num_layers=None), "num_layers is None"),
    "width null": (says(hidden_size=None), "hidden_size is None"),
    "heads that do not divide": (says(num_heads=3), "hidden_size 8 .* num_heads 3"),
    "another number of neurons": (says(intermediate_size=24), r"c_fc.*\[32\].*\[24\]"),
    "no queries": (holds(q_proj__weight=None), r"h\.1\.attn\.attention\.q_proj\.weight"),
    "no output bias": (holds(out_proj__bias=None), r"h\.1\.attn\.attention\.out_proj\.bias"),
    "misshapen": (holds(v_proj__weight=np.zeros((8, 4), np.float32)), r"v_proj.*\[8, 4\].*\[8, 8\]"),
    "scalar": (holds(out_proj__weight=np.zeros((), np.float32)), r"c_proj.*\[\].*\[8, 8\]"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_bad_input(tmp_path, what):
    breaks, message = BROKEN[what]
    folder = tmp_path / "broken-model"
    shutil.copytree(FOLDER, folder)
    breaks(folder)
    with pytest.raises(BadInput, match=message) as error:
        lms.load(str(folder))
    assert "broken-model" in str(error.value)


def test_a_checkpoint_without_safetensors_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match=r"no model\.safetensors.*save_pretrained\(FOLDER, safe_serialization=True\)"):
        lms.load(str(tmp_path))
