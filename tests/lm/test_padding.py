"""Padding in the public path, from `tokenizer.pad` to logits, and the README's example of it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.interop.native import save
from jaxsae.lm.hooks import KINDS, Hook
from jaxsae.sae.types import Spec
from tests.lm import tiny
from tests.sae import dense

README = Path(__file__).parents[2] / "README.md"
TEXTS = ["It was a dark and stormy night", "Call me Ishmael", "x"]


@pytest.fixture(scope="module")
def lm(tiny_lm):
    return lms.load(str(tiny_lm))


@pytest.fixture(scope="module")
def tokenizer(lm):
    return lms.load_tokenizer(lm)


def same(padded, alone, mask, what):
    """Activations [b, T, d] at real tokens are those of each text alone, [1, T, d] each."""
    for row, real, want in zip(padded, mask, alone, strict=True):
        np.testing.assert_allclose(row[real], want[0], atol=2e-5, rtol=0, err_msg=what)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_activation_in_silence(lm, tokenizer, side):
    tokens, mask = tokenizer.pad(TEXTS, side)
    assert tokens.shape == mask.shape and not mask.all() and mask[:, -1 if side == "left" else 0].all()
    ids = [np.array([tokenizer.encode([text])[0]]) for text in TEXTS]
    for real, row, alone in zip(mask, tokens, ids):
        np.testing.assert_array_equal(row[real], alone[0])
    every = [str(Hook(1, kind)) for kind in KINDS]

    @jax.jit
    def pieces(lm, tokens, mask=None):
        seen = {f"prefix {hook}": lm.prefix(tokens, hook, mask) for hook in every}
        for hook in every[:3]:
            stream = seen[f"prefix {hook}"]
            seen[f"suffix {hook}"] = lm.suffix(stream, hook, mask)
            seen[f"final {hook}"] = lm.final(stream, hook, mask)
        seen |= {f"run {hook}": lm.run(tokens, {hook: jnp.sin}, mask) for hook in every}
        return seen | {"run": lm.run(tokens, mask=mask)}

    # What comes later does not count, so texts alone may have one length, and are compiled once.
    longest = max(len(a[0]) for a in ids)
    alone = [pieces(lm, np.pad(a, ((0, 0), (0, longest - len(a[0]))))) for a in ids]
    alone = [{name: value[:, : len(a[0])] for name, value in seen.items()} for a, seen in zip(ids, alone)]
    padded = pieces(lm, tokens, mask)
    assert len(padded) == 2 * len(KINDS) + 7
    for what, value in padded.items():
        same(value, [seen[what] for seen in alone], mask, what)
    # And the test would see it: without the mask, left padding changes everything.
    if side == "left":
        unmasked = lm.run(tokens)
        assert np.abs(unmasked[1][mask[1]] - alone[1]["run"][0]).max() > 1e-2


@pytest.mark.parametrize("name", ["golden", "golden_neo"])
def test_logits_after_left_padding_equal_torch(name):
    golden = np.load(tiny.FOLDER.parent / name / "golden.npz")
    tokens = np.pad(golden["tokens"], ((0, 0), (4, 0)))
    mask = np.arange(16) >= np.full((2, 1), 4)
    logits = lms.load(str(tiny.FOLDER.parent / name)).run(tokens, mask=mask)
    np.testing.assert_allclose(logits[:, 4:], golden["padded_logits"], atol=1e-4)


def test_a_padded_text_longer_than_the_model_is_bad_input(lm, tokenizer):
    tokens, mask = tokenizer.pad(["word " * 100, "x"])
    with pytest.raises(BadInput, match="longer than the model's 64 positions"):
        lm.prefix(tokens, "blocks.0.hook_resid_post", mask)


def test_the_readmes_example_runs_on_two_prompts_of_unequal_length(tmp_path, monkeypatch):
    block = next(code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "tokenizer" in code)
    hook, embedded = "blocks.3.hook_resid_post", lms.load("embedded")
    spec = Spec("topk", 4, "unit_norm", "unit_norm", True)
    sae = dense.random_sae(jax.random.key(0), 512, embedded.config.d_model, spec, jnp.float32)
    save(sae, tmp_path / "runs/demo/sae", {"hook": hook})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, str(README), "exec"), names)
    tokens, mask, x, logits = (np.asarray(names[name]) for name in ("tokens", "mask", "x", "logits"))
    assert len(tokens) == 2 and not mask.all() and logits.shape == (*tokens.shape, embedded.config.vocab_size)
    assert names["z"].shape == (*tokens.shape, 512) and names["code"].values.shape == (*tokens.shape, 4)
    short = tokens[1:][:, mask[1]]
    alone = embedded.prefix(short, hook)
    np.testing.assert_allclose(x[1][mask[1]], alone[0], rtol=1e-5, atol=2e-3)
    want = embedded.suffix(jaxsae.decode(sae, jaxsae.encode(sae, alone)), hook)
    np.testing.assert_allclose(logits[1][mask[1]], want[0], atol=1e-2)
