"""The pieces of a language model fit together at every hook point; each costs its own layers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm import architecture
from jaxsae.lm.hooks import KINDS, Hook
from tests.lm import tiny

# Pieces compiled apart round apart; activations are of size 1.
close = lambda a, b, msg="": np.testing.assert_allclose(a, b, atol=2e-5, rtol=0, err_msg=msg)

# One compiled function for all hook points: compiling one for each takes most of a test's time.
prefixes = jax.jit(lambda lm, tokens: {hook: lms.prefix(lm, tokens, hook) for hook in tiny.HOOKS})
suffixes = jax.jit(lambda lm, streams: {h: lms.suffix(lm, x, h) for h, x in streams.items()})
run = jax.jit(lms.run)


@pytest.fixture(scope="module")
def lm():
    return tiny.model()


@pytest.fixture(scope="module")
def tokens():
    return tiny.random_tokens(2)


@pytest.fixture(scope="module")
def captured(lm, tokens):
    return jax.jit(lambda lm, tokens: lms.capture(lm, tokens, tiny.HOOKS))(lm, tokens)


def noise(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_prefix_then_suffix_is_the_whole_model(lm, tokens):
    streams = prefixes(lm, tokens)
    want = run(lm, tokens)
    have = suffixes(lm, {hook: streams[hook] for hook in tiny.RESIDUALS})
    assert set(have) == set(tiny.RESIDUALS)
    for hook, logits in have.items():
        close(logits, want, hook)


def test_capture_equals_prefix_and_its_logits_equal_run(lm, tokens, captured):
    (seen, logits), want = captured, prefixes(lm, tokens)
    close(logits, run(lm, tokens))
    assert set(seen) == set(tiny.HOOKS)
    for hook in tiny.HOOKS:
        assert seen[hook].shape[-1] == architecture.width(lm.config, hook)
        close(want[hook], seen[hook], hook)


def test_the_methods_are_the_functions(lm, tokens):
    hook = "blocks.1.hook_resid_mid"

    @jax.jit
    def pairs(lm, tokens):
        stream = lms.prefix(lm, tokens, hook)
        final = lms.final(lm, stream, hook)
        return [
            (lm.prefix(tokens, hook), stream),
            (lm.final(stream, hook), final),
            (lm.unembed(final), lms.unembed(lm, final)),
            (lm.suffix(stream, hook), lms.suffix(lm, stream, hook)),
            (lm.run(tokens), lms.run(lm, tokens)),
        ]

    for a, b in pairs(lm, tokens):
        np.testing.assert_array_equal(a, b)


def test_taps_that_return_their_input_change_nothing(lm, tokens):
    taps = {hook: lambda a: a for hook in tiny.HOOKS}
    np.testing.assert_array_equal(jax.jit(lambda lm: lms.run(lm, tokens, taps))(lm), run(lm, tokens))


def test_replacing_the_stream_is_the_suffix_of_the_replacement(lm, tokens):
    other = noise((*tokens.shape, tiny.WIDTH))

    @jax.jit
    def replaced(lm, other):
        return {h: lms.run(lm, tokens, {h: lambda _: other}) for h in tiny.RESIDUALS}

    want = suffixes(lm, dict.fromkeys(tiny.RESIDUALS, other))
    for hook, logits in replaced(lm, other).items():
        close(logits, want[hook], hook)


def test_what_replaces_a_sublayers_activation_is_what_it_computes_with(lm, tokens, captured):
    seen, write = captured[0], noise((*tokens.shape, tiny.WIDTH))
    neurons = noise((*tokens.shape, 4 * tiny.WIDTH), 1)
    cases = {}
    for layer in range(tiny.LAYERS):
        at = lambda kind, layer=layer: f"blocks.{layer}.{kind}"
        mlp = lm.params[f"h_{layer}"]["c_proj"]
        before, between = seen[at("hook_resid_pre")], seen[at("hook_resid_mid")]
        from_neurons = neurons @ mlp["kernel"] + mlp["bias"]
        output, hidden = lm.params[f"h_{layer}"]["attn"]["c_proj"], lm.params[f"h_{layer}"]["c_fc"]
        from_heads = write @ output["kernel"] + output["bias"]
        read = jax.nn.gelu(write @ hidden["kernel"] + hidden["bias"]) @ mlp["kernel"] + mlp["bias"]
        cases[at("hook_attn_out")] = write, before + write, at("hook_resid_mid")
        cases[at("hook_mlp_out")] = write, between + write, at("hook_resid_post")
        cases[at("attn.hook_z")] = write, before + from_heads, at("hook_resid_mid")
        cases[at("mlp.hook_in")] = write, between + read, at("hook_resid_post")
        cases[at("mlp.hook_post")] = neurons, between + from_neurons, at("hook_resid_post")

    @jax.jit
    def both(lm, cases):
        pairs = {}
        for hook, (replacement, stream) in cases.items():
            replaced = lms.run(lm, tokens, {hook: lambda _, value=replacement: value})
            pairs[hook] = replaced, lms.suffix(lm, stream, after[hook])
        return pairs

    after = {hook: case[2] for hook, case in cases.items()}
    for hook, pair in both(lm, {hook: case[:2] for hook, case in cases.items()}).items():
        close(*pair, hook)


@pytest.mark.parametrize("name", ["golden", "golden_neo"])
def test_processing_takes_gain_and_biases_out_of_what_the_mlp_and_the_output_matrix_read(x64, name):
    raw = lms.load(str(tiny.FOLDER.parent / name), dtype=jnp.float64)
    processed = lms.process_weights(raw)
    tokens = tiny.random_tokens(2) % raw.config.vocab_size
    hooks = ["blocks.1.mlp.hook_in", "blocks.1.attn.hook_z"]
    capture = jax.jit(lambda lm: lms.capture(lm, tokens, hooks)[0])
    (read, heads), (plain_read, plain_heads) = ([capture(lm)[hook] for hook in hooks] for lm in (raw, processed))
    p = jax.tree.map(np.asarray, raw.params["h_1"])
    close(read, plain_read * p["ln_2"]["scale"] + p["ln_2"]["bias"])
    # Of the values, whose weights sum to one: their own bias, and what they make of the norm's.
    values = -raw.config.d_model
    moved = p["attn"]["c_attn"]["bias"][values:] + p["ln_1"]["bias"] @ p["attn"]["c_attn"]["kernel"][:, values:]
    assert np.abs(moved).min() > 1e-4
    close(heads, plain_heads + moved)


def test_a_replacement_at_one_position_changes_only_what_reads_it(lm, tokens, captured):
    position, hook = 5, "blocks.1.hook_mlp_out"
    taps = {hook: lambda a: a.at[:, position].set(0)}
    seen, logits = jax.jit(lambda lm, t: lms.capture(lm, t, tiny.HOOKS, taps))(lm, tokens)
    changed = {name: np.abs(seen[name] - captured[0][name]).max((0, 2)) > 1e-4 for name in seen}
    changed["logits"] = np.abs(logits - captured[1]).max((0, 2)) > 1e-4
    # A hook is captured before its own tap, so this one shows no change itself.
    later = [
        "blocks.1.hook_resid_post",
        *(h for h in tiny.HOOKS if h.startswith("blocks.2")),
        "logits",
    ]
    for name, where in changed.items():
        if name not in later:
            assert not where.any(), name
        elif name == "blocks.1.hook_resid_post":
            np.testing.assert_array_equal(where, np.arange(len(where)) == position, name)
        else:
            assert not where[:position].any() and where[position], name


def test_logits_do_not_depend_on_later_tokens(lm, tokens):
    position = 6
    other = np.where(np.arange(tokens.shape[1]) > position, (tokens + 1) % tiny.VOCABULARY, tokens)
    a, b = run(lm, tokens), run(lm, other)
    np.testing.assert_array_equal(a[:, : position + 1], b[:, : position + 1])
    assert (np.abs(a - b).max(-1)[:, position + 1 :] > 1e-3).all()


def test_gradients_of_later_positions_are_zero(lm, tokens):
    position, hook = 6, "blocks.0.hook_resid_mid"
    weights = noise((tiny.VOCABULARY,))
    stream = lms.prefix(lm, tokens, hook)

    @jax.jit
    def gradients(lm, stream):
        value = lambda logits: (logits[:, position] @ weights).sum()
        whole = jax.grad(lambda lm: value(lms.run(lm, tokens)))(lm)
        return whole.params, jax.grad(lambda x: value(lms.suffix(lm, x, hook)))(stream)

    params, of_stream = gradients(lm, stream)
    for size in np.abs(params["wpe"]["embedding"]).max(1), np.abs(of_stream).max((0, 2)):
        assert (size[: position + 1] > 0).all() and (size[position + 1 :] == 0).all()


def flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_every_piece_costs_only_its_own_layers(lm, tokens):
    stream = jnp.zeros((*tokens.shape, tiny.WIDTH))
    up = lambda hook: flops(lambda lm, t: lms.prefix(lm, t, hook), lm, tokens)
    on = lambda hook: flops(lambda lm, x: lms.suffix(lm, x, hook), lm, stream)
    whole = flops(lms.run, lm, tokens)
    first, second, last = (up(f"blocks.{layer}.hook_resid_post") for layer in range(tiny.LAYERS))
    block = second - first
    assert block > 2 * tokens.size * 12 * tiny.WIDTH**2
    np.testing.assert_allclose([first, last], [block, 3 * block], rtol=0.02)
    np.testing.assert_allclose(on("blocks.0.hook_resid_post"), whole - first, rtol=0.02)
    np.testing.assert_allclose(on("blocks.2.hook_resid_post"), whole - last, rtol=0.1)
    # Inside a block too: attention's output without the MLP, neurons without what they write.
    assert up("blocks.0.hook_attn_out") < 0.45 * block < up("blocks.0.mlp.hook_post") < 0.8 * block


def test_an_lm_is_an_argument_and_not_a_constant(lm, tokens):
    jitted = jax.jit(lms.run)
    one = jitted(lm, tokens)
    doubled = jitted(jax.tree.map(lambda p: 2 * p, lm), tokens)
    assert jitted._cache_size() == 1
    assert np.abs(one - doubled).max() > 0.1


def test_tf32_products_are_close_to_float32(lm, tokens):
    # Equal on a CPU, which has no faster float32.
    want = run(lm, tokens)
    assert np.abs(run(tiny.model("tf32"), tokens) - want).max() < 0.005 * np.abs(want).max()


def test_bfloat16_products_and_their_gradients_are_close_to_float32(lm, tokens):
    hook = "blocks.0.hook_resid_post"
    stream, direction = lms.prefix(lm, tokens, hook), noise((*tokens.shape, tiny.VOCABULARY))

    def value(lm, stream):
        logits = lms.suffix(lm, stream, hook)
        return (logits * direction).sum(), logits

    both = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))
    (exact, rounded) = (jax.tree.leaves(both(m, stream)) for m in (lm, tiny.model("bfloat16")))
    assert (exact[-1] != rounded[-1]).any()
    for want, have in zip(exact, rounded):
        assert have.dtype == np.float32
        # bfloat16 has eight bits; the largest relative error of an array's norm is 0.009.
        assert np.linalg.norm(have - want) <= 0.03 * np.linalg.norm(want)


def test_bfloat16_gradients_multiply_bfloat16_operands(lm, tokens):
    """A float32 cotangent times a bfloat16 operand would be slow on every platform."""
    value = lambda lm: lms.run(lm, tokens).sum()
    text = jax.jit(jax.grad(value)).lower(tiny.model("bfloat16")).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    # "(tensor<24x32xbf16>, tensor<32x96xbf16>) -> tensor<24x96xf32>" ends each of them.
    types = [line.split(" : ")[-1].split("->")[0] for line in dots]
    operands = [set(re.findall(r"x(bf16|f32)>", pair)) for pair in types]
    assert {"bf16"} in operands and {"bf16", "f32"} not in operands


UNKNOWN = ["", "resid", "hook_embed", "blocks.0.hook_z", "blocks.x.hook_resid_pre"]
UNKNOWN += ["blocks.-1.hook_resid_pre", "transformer.h.0"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_hook_point_is_bad_input(lm, tokens, name):
    for use in (lambda: lm.prefix(tokens, name), lambda: lm.run(tokens, {name: lambda a: a})):
        with pytest.raises(BadInput) as error:
            use()
        message = str(error.value)
        assert repr(name) in message and "0 to 2" in message
        assert all(f"blocks.L.{kind}" in message for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_outside_the_model_is_bad_input(lm, tokens, kind):
    for layer in (3, 100):
        with pytest.raises(BadInput, match=rf"blocks\.{layer}\.{kind}.*3 blocks.*0 to 2"):
            lm.prefix(tokens, f"blocks.{layer}.{kind}")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not Hook(0, kind).residual])
def test_the_network_cannot_be_cut_beside_the_stream(lm, tokens, kind):
    hook = f"blocks.1.{kind}"
    for piece in (lm.suffix, lm.final):
        with pytest.raises(BadInput, match=rf"blocks\.1\.{kind}.*residual"):
            piece(lm.prefix(tokens, hook), hook)


def test_a_context_longer_than_the_model_is_bad_input(lm):
    jax.eval_shape(lms.run, lm, tiny.random_tokens(1, tiny.POSITIONS))
    long = tiny.random_tokens(1, tiny.POSITIONS + 1)
    for use in (lambda: lm.run(long), lambda: lm.prefix(long, "blocks.0.hook_resid_pre")):
        with pytest.raises(BadInput, match=r"17 tokens .* 16 positions"):
            use()


def test_advance_goes_from_one_place_to_another(lm, tokens, captured):
    streams, _ = captured
    first, *_, last = tiny.RESIDUALS
    close(jax.jit(lms.advance, static_argnums=(2, 3))(lm, streams[first], first, last), streams[last])
    with pytest.raises(BadInput, match="backwards"):
        lms.advance(lm, streams[last], last, first)
