"""GPT-2: logits and every hook point against PyTorch's (make_golden.py), Hugging Face's and TransformerLens's.

The float64 goldens of the last two are sharper, but lie outside the repository.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.lm.hooks import KINDS
from tests.lm import tiny

# The two differ by 2.1e-6 at most on a CPU (activations are of size 1, logits of up to 4.2).
ATOL = 1e-4


@pytest.fixture(scope="module")
def golden():
    return np.load(tiny.FOLDER / "golden.npz")


@pytest.fixture(scope="module")
def captured(golden):
    capture = jax.jit(lambda lm, tokens: lms.capture(lm, tokens, tiny.HOOKS))
    return capture(tiny.model(), golden["tokens"])


def test_golden_holds_every_hook_point(golden):
    assert set(golden.files) == {"tokens", "logits", "padded_logits", *tiny.HOOKS}


def test_logits_equal_torch(golden, captured):
    np.testing.assert_allclose(captured[1], golden["logits"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("hook", tiny.HOOKS)
def test_activations_equal_torch(golden, captured, hook):
    assert captured[0][hook].dtype == np.float32
    np.testing.assert_allclose(captured[0][hook], golden[hook], atol=ATOL, rtol=0)


# Models outside the repository.


def hook_points(n_layer):
    return [f"blocks.{layer}.{kind}" for layer in range(n_layer) for kind in KINDS]


def of_transformer_lens(golden, name, hook):
    """The activation at `hook` from TransformerLens's arrays, of which heads are an axis of their own."""
    x = golden[f"{name}/{hook.replace('mlp.hook_in', 'ln2.hook_normalized')}"]
    return x.reshape(*x.shape[:2], -1)


@pytest.mark.parametrize("processed", [False, True], ids=["unprocessed", "processed"])
def test_tiny_gpt2_in_float64(x64, shared, processed):
    folder = shared("fixtures/peers/gpt2_tiny")
    golden = np.load(folder / "golden.npz")
    lm = lms.load(str(folder / "hf"), dtype=jnp.float64)
    if processed:
        lm = lms.process_weights(lm)
    seen, logits = lms.capture(lm, golden["tokens"], hook_points(3))
    name = "processed" if processed else "unprocessed"
    np.testing.assert_allclose(logits, golden[f"{name}/logits"], atol=1e-10)
    for hook in hook_points(3):
        want = of_transformer_lens(golden, name, hook)
        np.testing.assert_allclose(seen[hook], want, atol=1e-10, err_msg=hook)
        np.testing.assert_allclose(lms.prefix(lm, golden["tokens"], hook), seen[hook], atol=1e-12, err_msg=hook)


def test_processing_keeps_log_probabilities_and_centres_the_stream(x64, shared):
    folder = shared("fixtures/peers/gpt2_tiny")
    tokens = np.load(folder / "golden.npz")["tokens"]
    raw = lms.load(str(folder / "hf"), dtype=jnp.float64)
    processed = lms.process_weights(raw)
    a, b = (jax.nn.log_softmax(m.run(tokens)) for m in (raw, processed))
    np.testing.assert_allclose(a, b, atol=1e-12)
    for kind in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post"):
        for layer in range(3):
            x, y = (m.prefix(tokens, f"blocks.{layer}.{kind}") for m in (raw, processed))
            np.testing.assert_allclose(y, x - x.mean(-1, keepdims=True), atol=1e-12)


def test_tinystories_in_float32(shared):
    folder = shared("models/gpt2-tinystories-3m")
    golden = np.load(folder / "golden.npz")
    lm = lms.load(str(folder))
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(8)]
    seen, logits = lms.capture(lm, golden["ids"], ["blocks.0.hook_resid_pre", *hooks])
    # Hugging Face's last hidden state is behind the final LayerNorm.
    for i, hook in enumerate(["blocks.0.hook_resid_pre", *hooks[:-1]]):
        np.testing.assert_allclose(seen[hook], golden["hidden"][i], atol=1e-4, err_msg=hook)
    np.testing.assert_allclose(lms.final(lm, seen[hooks[-1]], hooks[-1]), golden["hidden"][8], atol=1e-4)
    np.testing.assert_allclose(logits[..., :256], golden["logits_head"], atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(-1), golden["logits_argmax"])
    np.testing.assert_allclose(jax.nn.logsumexp(logits, -1), golden["logsumexp"], atol=1e-4)
