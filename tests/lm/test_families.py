"""The rotary families: logits and every hook point against PyTorch's float64 (make_golden_families.py), and how the
pieces of each fit together: padding, prefix and suffix, taps, processing, cost.

The models are run operation by operation: of their equal shapes most operations are compiled once for all of them.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm import architecture
from jaxsae.lm.hooks import Hook
from tests.marks import slow

FOLDER = Path(__file__).parent / "families"
NAMES = sorted(path.name for path in FOLDER.iterdir())
FAMILIES = ["gemma", "gemma2", "gemma3_text", "gpt_neox", "gpt_neox_serial", "llama_biased", "qwen2", "qwen3"]

ATOL = {"float64": 1e-9, "float32": 1e-4}


@pytest.fixture(autouse=True)
def float64_is_there(x64):
    """In every test, so that a model is loaded once."""


@cache
def model(name, dtype="float64"):
    return lms.load(str(FOLDER / name), dtype=dtype)


@cache
def golden(name):
    return dict(np.load(FOLDER / name / "golden.npz"))


def hooks(lm):
    return [str(hook) for hook in architecture.places(lm.config)]


def residuals(lm):
    return [str(names[0]) for names in architecture.of(lm.config).cuts(lm.config)]


@cache
def captured(name):
    lm = model(name)
    return lms.capture(lm, golden(name)["tokens"], hooks(lm))


def close(have, want, atol, what=""):
    np.testing.assert_allclose(have, want, atol=atol, rtol=0, err_msg=what)


# In float32 attention is computed another way, but for a soft-cap.
IN_FLOAT32 = ["gemma2", "llama", "mistral"]
CASES = [(name, "float64") for name in NAMES] + [(name, "float32") for name in IN_FLOAT32]


@pytest.mark.parametrize("name, dtype", [*CASES, *(slow(name, "float32") for name in NAMES if name not in IN_FLOAT32)])
def test_logits_and_every_hook_point_equal_torch(name, dtype):
    lm, want = model(name, dtype), golden(name)
    seen, logits = captured(name) if dtype == "float64" else lms.capture(lm, want["tokens"], hooks(lm))
    assert logits.dtype == dtype and {x.dtype for x in seen.values()} == {jnp.dtype(dtype)}
    close(logits, want["logits"], ATOL[dtype])
    if name == "gemma3":
        return
    kept = want.keys() - {"tokens", "logits"}
    # The others are the end of the block before.
    again = {f"blocks.{layer}.hook_resid_pre" for layer in range(1, lm.config.n_layer)}
    assert kept | again == {*hooks(lm)} and not kept & again
    for hook in kept:
        close(seen[hook], want[hook], ATOL[dtype], hook)
    for hook in again:
        before = Hook(int(hook.split(".")[1]) - 1, "hook_resid_post")
        close(seen[hook], want[str(before)], ATOL[dtype], hook)


def test_parallel_blocks_have_no_stream_between_attention_and_mlp():
    kinds = lambda name: {hook.kind for hook in architecture.places(model(name).config)}
    assert kinds("gpt_neox_serial") - kinds("gpt_neox") == {"hook_resid_mid"} and len(kinds("gpt_neox")) == 7
    at = lambda name: lms.depth(model("gpt_neox").config, f"blocks.{name}")
    cuts = ("0.hook_resid_pre", "0.hook_resid_post", "1.hook_resid_pre", "1.hook_resid_post")
    assert [at(name) for name in cuts] == [0, 1, 1, 2]
    with pytest.raises(BadInput, match=r"unknown hook point 'blocks\.0\.hook_resid_mid'"):
        lms.depth(model("gpt_neox").config, "blocks.0.hook_resid_mid")


def attention(**changes):
    return lambda config: replace(config, attention=replace(config.attention, **changes))


def field(**changes):
    return lambda config: replace(config, **changes)


def turned_plainly(config, theta):
    width = 2 * len(config.attention.rotary.frequencies)
    plain = tuple(theta ** -(np.arange(0, width, 2) / width))
    return turned(frequencies=plain)(config)


def turned(**changes):
    return lambda config: attention(rotary=replace(config.attention.rotary, **changes))(config)


# What the golden numbers would not show if they stayed the same without it.
ABLATED = {
    "llama": [lambda c: turned_plainly(c, 100.0), field(norm_eps=1e-2)],
    "llama_biased": [lambda c: turned_plainly(c, 1000.0)],
    "mistral": [attention(windows=()), attention(windows=(4, 4)), attention(windows=(6, 6))],
    "qwen2": [
        lambda c: turned_plainly(c, 100.0),
        turned(scale=1.0),
        attention(windows=()),
        attention(windows=(5, 5, 5)),
    ],
    "qwen3": [lambda c: turned_plainly(c, 100.0), turned(scale=1.0), attention(qk_norm=False)],
    "gpt_neox": [lambda c: turned_plainly(c, 1e4), field(activation="gelu_new")],
    "gpt_neox_serial": [lambda c: turned_plainly(c, 1000.0)],
    "gemma": [field(scaled_embedding=False), field(activation="silu"), field(gain_offset=0.0)],
    "gemma2": [
        attention(windows=()),
        attention(windows=(None, 5, None)),
        attention(cap=None),
        field(logit_cap=None),
        attention(scale=0.25),
    ],
    "gemma3_text": [
        attention(local_rotary=None),
        attention(windows=(None, 5, 5)),
        attention(qk_norm=False),
        attention(gain_offset=0.0),
        lambda c: turned_plainly(c, 1000.0),
    ],
}


@pytest.mark.parametrize("name", ABLATED)
def test_the_golden_tells_each_setting_from_its_neighbours(name):
    lm = model(name)
    for i, ablate in enumerate(ABLATED[name]):
        logits = lms.run(replace(lm, config=ablate(lm.config)), golden(name)["tokens"])
        # The exact and the approximate GELU differ by 5e-4 at most.
        least = 1e-5 if (name, i) == ("gpt_neox", 1) else 1e-3
        assert np.abs(logits - golden(name)["logits"]).max() > least, i


@pytest.mark.parametrize("name, dtype", [*((name, "float64") for name in FAMILIES), ("mistral", "float32")])
def test_padding_changes_nothing_at_real_tokens(name, dtype):
    lm, tokens, (want, want_logits) = model(name, dtype), golden(name)["tokens"], captured(name)
    # Of each text the first 8 tokens (a model is causal): one with padding on its left, one with padding on its right.
    mask, padded = np.zeros((2, 12), bool), np.full((2, 12), 96)
    for row, real in enumerate((slice(4, 12), slice(0, 8))):
        mask[row, real], padded[row, real] = True, tokens[row, :8]
    seen, logits = lms.capture(lm, padded, hooks(lm), mask=mask)
    for what, have in {**seen, "logits": logits}.items():
        alone = (want | {"logits": want_logits})[what][:, :8]
        close(np.asarray(have)[mask].reshape(alone.shape), alone, 1e-11 if dtype == "float64" else 1e-4, what)


@pytest.mark.parametrize("name", FAMILIES)
def test_prefix_then_suffix_is_the_whole_model(name):
    lm, tokens, (seen, logits) = model(name), golden(name)["tokens"], captured(name)
    for hook in hooks(lm):
        close(lm.prefix(tokens, hook), seen[hook], 1e-12, hook)
    first, *_, last = places = residuals(lm)
    for hook in places:
        close(lm.suffix(seen[hook], hook), logits, 1e-12, hook)
    close(lms.advance(lm, seen[first], first, last), seen[last], 1e-12)
    close(lm.unembed(lm.final(seen[last], last)), logits, 1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_taps_replace_what_the_model_computes_with(name):
    """With activations of other tokens at hook points that everything passes, the logits are those of the others."""
    lm, tokens, (seen, logits) = model(name), golden(name)["tokens"], captured(name)
    places = [[*residuals(lm)[:1], *(hook for hook in seen if hook.endswith(ends))] for ends in PASSED]
    for hooks_passed in places:
        taps = {hook: lambda _, other=seen[hook][::-1]: other for hook in hooks_passed}
        close(lms.run(lm, tokens, taps), logits[::-1], 1e-11, str(hooks_passed))
    for hook in residuals(lm):
        close(lms.run(lm, tokens, {hook: lambda _, other=seen[hook][::-1]: other}), logits[::-1], 1e-11, hook)


# Beside the embedding.
PASSED = [("hook_attn_out", "hook_mlp_out"), ("attn.hook_z", "mlp.hook_in"), ("hook_attn_out", "mlp.hook_post")]


@pytest.mark.parametrize("name", FAMILIES)
def test_processing_changes_logits_by_a_constant_at_most(name):
    lm, tokens, (seen, logits) = model(name), golden(name)["tokens"], captured(name)
    processed = lms.process_weights(lm)
    assert jax.tree.map(np.shape, processed.params) == jax.tree.map(
        np.shape, architecture.of(lm.config).shapes(processed.config)
    )
    have, have_logits = lms.capture(processed, tokens, hooks(lm))
    centred = lambda x: x - x.mean(-1, keepdims=True)
    # Before a soft-cap a constant would not be one after it.
    capped = getattr(lm.config, "logit_cap", None)
    close(have_logits, logits if capped else centred(logits), 1e-12)
    neox = name.startswith("gpt_neox")
    for hook in hooks(lm):
        if "resid" in hook:
            close(have[hook], centred(seen[hook]) if neox else seen[hook], 1e-12, hook)
        if hook.endswith("mlp.hook_in"):
            norm = lm.params[f"h_{hook.split('.')[1]}"]["mlp_norm"]
            gain = norm["scale"] if neox else norm["gain"] + lm.config.gain_offset
            close(seen[hook], have[hook] * gain + norm.get("bias", 0), 1e-12, hook)
    assert not jnp.array_equal(have[hooks(lm)[-1]], 0)
    a = processed.config.attention
    assert not a.qkv_bias or not any(np.any(processed.params[f"h_{i}"]["attn"]["v"]["bias"]) for i in range(2))


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_two_for_every_weight_of_a_matrix(name):
    config = model(name).config
    leaves = jax.tree_util.tree_flatten_with_path(model(name).params)[0]
    weights = sum(a.size for path, a in leaves if path[-1].key == "kernel")
    weights += config.tied * config.d_model * config.vocab_size
    for hook in residuals(model(name)):
        assert sum(architecture.flops(config, hook)) == 2 * weights


@pytest.mark.parametrize("name", FAMILIES)
def test_an_activation_has_the_width_that_the_family_says(name):
    lm, (seen, _) = model(name), captured(name)
    assert {hook: x.shape[-1] for hook, x in seen.items()} == {h: architecture.width(lm.config, h) for h in hooks(lm)}


def test_bfloat16_weights_are_computed_with_in_float32_and_the_root_of_the_width_is_rounded_to_them():
    exact, kept = model("gemma2", "float32"), model("gemma2", "bfloat16")
    tokens = golden("gemma2")["tokens"]
    assert {x.dtype for x in jax.tree.leaves(kept.params)} == {jnp.dtype(jnp.bfloat16)}
    embed = architecture.of(kept.config).embed
    stream, table = embed(kept.params, kept.config, tokens, None), exact.params["embed"]["embedding"][tokens]
    assert stream.dtype == jnp.float32
    # Of 32, 5.65625 in bfloat16 and 5.656854 in float32.
    np.testing.assert_array_equal(stream, table * 5.65625)
    np.testing.assert_array_equal(embed(exact.params, exact.config, tokens, None), table * np.float32(32**0.5))
    rest = lambda lm: lm.suffix(stream, "blocks.0.hook_resid_pre")
    # The weights of the files are bfloat16, so nothing else is rounded.
    close(rest(kept), rest(exact), 1e-5)


@pytest.mark.parametrize("name", [slow("gemma2"), slow("gpt_neox"), slow("qwen3")])
def test_bfloat16_products_and_their_gradients_are_close_to_float32(name):
    hook, tokens = "blocks.0.hook_resid_post", golden(name)["tokens"]
    stream = model(name, "float32").prefix(tokens, hook)
    direction = jax.random.normal(jax.random.key(0), (*tokens.shape, 97), jnp.float32)

    def value(lm, stream):
        return (lms.suffix(lm, stream, hook) * direction).sum()

    both = jax.jit(jax.grad(value, argnums=1))
    want = both(model(name, "float32"), stream)
    have = both(lms.load(str(FOLDER / name), "bfloat16"), stream)
    assert have.dtype == np.float32 and np.any(have != want)
    assert np.linalg.norm(have - want) <= 0.05 * np.linalg.norm(want)
