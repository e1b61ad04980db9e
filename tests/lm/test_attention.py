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


def test_token_ids_outside_the_vocabulary_are_bad_input():
    lm = tiny.model()
    for wrong in (tiny.VOCABULARY, -1):
        for tokens in (np.array([[0, wrong, 3]]), jnp.array([[0, wrong, 3]])):
            for use in (lambda t: lm.prefix(t, "blocks.0.hook_resid_pre"), lm.run):
                with pytest.raises(BadInput, match=rf"token id {wrong} .* from 0 to {tiny.VOCABULARY - 1}"):
                    use(tokens)
    # Inside jit nobody knows the values.
    jax.eval_shape(lm.run, jnp.array([[0, tiny.VOCABULARY]]))
