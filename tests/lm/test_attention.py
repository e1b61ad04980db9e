"""Padding changes nothing at real tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm import attention
from jaxsae.lm.hooks import KINDS
from tests.lm import tiny

LENGTHS, T = (7, 12, 1), 14


def masks():
    """{where the padding is: mask [3, T] of texts of LENGTHS tokens}."""
    right = np.arange(T) < np.array(LENGTHS)[:, None]
    scattered = np.array([np.random.default_rng(i).permutation(row) for i, row in enumerate(right)])
    return {"right": right, "left": right[:, ::-1], "anywhere": scattered}


def test_positions_count_real_tokens():
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]], bool)
    want = [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3], [0, 1, 1, 2, 2]]
    np.testing.assert_array_equal(attention.positions(jnp.array(mask), 5), want)
    np.testing.assert_array_equal(attention.positions(None, 5), np.arange(5))


@pytest.mark.parametrize("window", [None, 1, 3])
def test_a_mask_of_real_tokens_alone_is_no_mask(window):
    plain = attention.visible(6, window)
    np.testing.assert_array_equal(attention.visible(6, window, jnp.ones((2, 6), bool)), [plain, plain])


# Each family, each way to compute attention; the second has a layer without a window and one with it.
@pytest.mark.parametrize("name, dtype", [("golden", "float64"), ("golden_neo", "float32")])
def test_activations_are_those_without_padding(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        lm = lms.load(str(tiny.FOLDER.parent / name), dtype=dtype)
        random = np.random.default_rng(0)
        texts = [random.integers(lm.config.vocab_size, size=n) for n in LENGTHS]
        hooks = [f"blocks.{layer}.{kind}" for layer in range(lm.config.n_layer) for kind in KINDS]
        cut = "blocks.0.hook_resid_mid"

        @jax.jit
        def everything(lm, tokens, mask=None):
            seen, logits = lms.capture(lm, tokens, hooks, mask=mask)
            stream = lm.prefix(tokens, cut, mask)
            moved = lms.advance(lm, stream, cut, "blocks.1.hook_resid_mid", mask)
            gradient = jax.grad(lambda x: jnp.square(lm.final(x, cut, mask)).sum())(stream)
            return seen, {
                "run": lm.run(tokens, mask=mask),
                "capture": logits,
                "prefix": lm.prefix(tokens, hooks[-2], mask),
                "advance": moved,
                "suffix": lm.suffix(stream, cut, mask),
                "final": lm.final(stream, cut, mask),
                "gradient": gradient,
            }

        # Without padding: a causal model's activations do not depend on what comes later, so one length will do.
        whole = np.zeros((3, max(LENGTHS)), int)
        for row, text in zip(whole, texts):
            row[: len(text)] = text
        plain, pieces = everything(lm, whole)
        want = plain | {name: value for name, value in pieces.items() if name != "gradient"}
        assert all((np.abs(value).max((1, 2)) > 1e-3).all() for value in want.values())
        for side, mask in masks().items():
            tokens = random.integers(lm.config.vocab_size, size=(3, T))
            for row, real, text in zip(tokens, mask, texts):
                row[real] = text
            seen, have = everything(lm, tokens, jnp.array(mask))
            assert np.isfinite(have["gradient"]).all()
            for what, value in want.items():
                for i, n in enumerate(LENGTHS):
                    padded = np.asarray((seen | have)[what])[i, mask[i]]
                    atol = 1e-4 if dtype == "float32" else 1e-11
                    np.testing.assert_allclose(padded, value[i, :n], atol=atol, rtol=0, err_msg=f"{side} {what}")


def test_a_mask_of_another_shape_is_bad_input():
    lm, tokens = tiny.model(), tiny.random_tokens(2)
    with pytest.raises(BadInput, match=r"mask has shape \[2, 11\], but the tokens \[2, 12\]"):
        lm.prefix(tokens, "blocks.0.hook_resid_pre", np.ones((2, 11), bool))


def test_a_mask_of_another_shape_than_the_stream_is_bad_input():
    lm, hook = tiny.model(), "blocks.0.hook_resid_pre"
    stream = lm.prefix(tiny.random_tokens(2), hook)
    for use in (lm.suffix, lm.final, lambda x, at, mask: lms.advance(lm, x, at, "blocks.1.hook_resid_pre", mask)):
        with pytest.raises(BadInput, match=r"mask has shape \[2, 1\], but the tokens \[2, 12\]"):
            use(stream, hook, np.ones((2, 1), bool))


HOOK = "blocks.0.hook_resid_pre"


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_token_ids_outside_the_vocabulary_are_bad_input_and_not_nan(kind):
    lm = tiny.model()
    uses = lambda t: lm.prefix(t, HOOK), lm.run, lambda t: lms.capture(lm, t, [HOOK])
    for wrong, named in ((tiny.VOCABULARY, None), (-1, None), (-100, None), (1 << 30, None), ([-1, 500, 300], 500)):
        tokens = np.zeros((2, 5), np.int32)
        tokens[1, 1:4] = wrong
        if np.isscalar(wrong):
            tokens[1, 2:4], named = 3, wrong
        place = 2 if named == 500 else 1
        message = rf"token id {named} \(context 1, position {place}\) .* from 0 to {tiny.VOCABULARY - 1}"
        for use in uses:
            with pytest.raises(BadInput, match=message):
                use(kind(tokens))
    # Inside jit nobody knows the values.
    jax.eval_shape(lm.run, jnp.array([[0, tiny.VOCABULARY]]))


@pytest.mark.parametrize("pad", [-1, -100, tiny.VOCABULARY, 1 << 30])
def test_ids_of_padding_outside_the_vocabulary_do_not_reach_real_tokens(pad):
    """A tokenizer may pad with a token that the model does not have, and unused places be marked with -1."""
    lm, tokens = tiny.model(), tiny.random_tokens(2)
    mask = np.ones(tokens.shape, bool)
    mask[0, :5] = mask[1, 7:] = False
    want = lm.run(tokens, mask=mask)
    padded = np.where(mask, tokens, pad)
    np.testing.assert_array_equal(lm.run(padded, mask=mask)[mask], want[mask])
    np.testing.assert_allclose(
        jax.jit(lambda lm, *args: lm.run(args[0], mask=args[1]))(lm, padded, mask)[mask], want[mask], atol=2e-5
    )


def test_token_ids_that_are_no_contexts_of_whole_numbers_are_bad_input():
    lm = tiny.model()
    for tokens in (np.zeros(5, int), np.zeros((2, 3, 4), int), np.zeros((2, 3)), np.ones((2, 3), bool)):
        with pytest.raises(BadInput, match=r"whole numbers \[b, T\]"):
            lm.run(tokens)
