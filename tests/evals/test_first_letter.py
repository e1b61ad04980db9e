"""Absorption and splitting against SAEBench's definitions in plain code, and the evaluation on a small model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae import lm as lms
from jaxsae.evals import EvaluationConfigs, first_letter, measure
from jaxsae.evals.first_letter import absorption, prompts
from jaxsae.evals.first_letter.evaluation import figure
from tests.evals.subjects import MESHES, on_text, placed, random_sae

HOOK = "blocks.1.hook_resid_pre"


@pytest.fixture
def model(x64, tiny_lm):
    lm = lms.load(str(tiny_lm), dtype=jnp.float64)
    return lm, lms.load_tokenizer(lm)


def subject_of(model, mesh=(1, 1), n=64):
    lm, tokenizer = model
    return replace(on_text(mesh, random_sae(32, n), HOOK, lm=lm), tokenizer=lambda: tokenizer)


def plain_fraction(projection, shares, cosines, main):
    own = sum(s for s, m in zip(shares, main) if m)
    others = sum(
        sorted((s for s, c, m in zip(shares, cosines, main) if not m and c >= 0.1 and s > 0), reverse=True)[:3]
    )
    if own >= projection or others / projection < 0.4:
        return 0.0
    if own <= 0:
        return 1.0
    absorbed = min(others, projection - own)
    return min(max(absorbed / (absorbed + own), 0), 1)


def plain_full(projection, values, shares, cosines, main):
    if any(m and v > 1e-8 for v, m in zip(values, main)) or projection < 0:
        return False
    top = max(range(len(shares)), key=lambda i: shares[i])
    return cosines[top] >= 0.025 and shares[top] / projection >= 0.4


def test_absorption_is_that_of_its_definition():
    random = np.random.default_rng(0)
    W, C = 400, 12
    values = np.maximum(random.normal(size=(W, C)), 0)
    cosines, main = random.normal(size=(W, C)) * 0.3, random.random((W, C)) < 0.15
    shares, projection = values * cosines, random.normal(size=W) + 0.3
    fraction, full = absorption.absorption(projection, values, shares, cosines, main)
    for i in range(W):
        expected = plain_fraction(projection[i], shares[i], cosines[i], main[i]) if projection[i] > 0 else 0
        np.testing.assert_allclose(fraction[i], expected)
        assert full[i] == plain_full(projection[i], values[i], shares[i], cosines[i], main[i])
    assert {0.0, 1.0} < set(fraction) and 0 < full.mean() < 1


def test_a_letter_is_split_as_long_as_latents_add_to_the_f1():
    assert absorption.split([0.5, 0.6, 0.62, 0.9]) == 2
    assert absorption.split([0.9]) == 1 and absorption.split([0.3, 0.4, 0.5]) == 3


def test_prompts_ask_for_a_word_after_others_and_their_letters(model):
    _, tokenizer = model
    made = prompts.make_prompts(tokenizer, 64, 50)
    assert len(made.tokens) == 50 and made.tokens.shape[1] <= 64
    for row, letter in zip(made.tokens, made.letters):
        *shown, asked = tokenizer.decode(row).split("\n")
        word, rest = asked.split(" has the first letter:")
        assert rest == "" and word.strip()[0].upper() == prompts.LETTERS[letter]
        assert tokenizer.decode(row[made.asked : made.asked + 1]) == word
        assert shown
        for line in shown:
            other, answer = line.split(" has the first letter:")
            assert other.strip()[0].upper() == answer.strip() and other != word


def test_no_room_for_an_example_is_refused(model):
    with pytest.raises(jaxsae.BadInput, match="8 positions for"):
        prompts.make_prompts(model[1], 8, 50)
    with pytest.raises(jaxsae.BadInput, match=r"--first-letter\.accuracy 2"):
        first_letter.Config(accuracy=2)


def test_a_model_that_cannot_spell_is_said_to_be_one(model, tmp_path):
    result = measure("first_letter", subject_of(model))
    assert result["can_spell"] is False and result["accuracy"] < 0.5 and "per_letter" not in result
    lm, tokenizer = model
    made = prompts.make_prompts(tokenizer, 64, 4000)
    logits = np.asarray(lm.run(made.tokens[:20]))[:, -1, made.answers]
    right = logits.argmax(1) == made.letters[:20]
    np.testing.assert_array_equal(prompts.ask(subject_of(model), made, slice(0, 20))[2], right)
    figure(result, tmp_path / "f.png")


def test_results_are_the_same_on_every_mesh(model, tmp_path):
    config = EvaluationConfigs(first_letter=first_letter.Config(accuracy=0.0))
    one, many = (measure("first_letter", subject_of(model, mesh), config) for mesh in MESHES)
    assert one == many and one["can_spell"]
    random = np.random.default_rng(0)
    letters = random.integers(5, size=300)
    x = np.linalg.qr(random.normal(size=(32, 32)))[0][letters] + 0.1 * random.normal(size=(300, 32))
    one, many = (absorption.measure(subject_of(model, mesh), x, letters) for mesh in MESHES)
    assert [*one] == [*"ABCDE"] and max(own["absorption_fraction"] for own in one.values()) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, many)
    figure({"per_letter": one}, tmp_path / "f.png")


def test_absorption_that_is_planted_is_found(model):
    """A latent says each letter, but in a fifth of the words with C, where latents of a few words each say it."""
    subject, random = subject_of(model), np.random.default_rng(0)
    letters = np.repeat(np.arange(4), 250)[random.permutation(1000)]
    group = np.where((letters == 2) & (random.random(1000) < 0.2), random.integers(5, size=1000), -1)
    directions = np.linalg.qr(random.normal(size=(32, 32)))[0]
    x = 3 * directions[letters] + 0.02 * random.normal(size=(1000, 32))
    x[group >= 0] += 2 * directions[10 + group[group >= 0]]
    W_enc, W_dec, b_enc = np.zeros((64, 32)), np.eye(64, 32, 31), np.zeros(64)
    W_enc[:4] = W_dec[:4] = directions[:4]
    W_enc[2] -= 2 * directions[10:15].sum(0)
    W_enc[4:9] = 2 * directions[10:15]
    W_dec[4:9] = (directions[2] + directions[10:15]) / np.sqrt(2)
    b_enc[:9] = -0.5
    spec = replace(subject.sae.spec, activation="relu", normalise="none", decoder="free", subtract_b_dec=False)
    sae = subject.sae.replace(W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=np.zeros(32), spec=spec)
    result = absorption.measure(replace(subject, sae=placed(subject.mesh, sae)), x, letters)
    assert [*result] == ["A", "B", "C", "D"]
    for number, (letter, own) in enumerate(result.items()):
        assert own["latents"] == [number] and own["probe_f1"] == 1
        words = (np.arange(1000) >= 800) & (letters == number)
        absorbed = (group[words] >= 0).mean()
        assert own["words"] == words.sum() and (absorbed > 0.1) == (letter == "C")
        np.testing.assert_allclose(own["full_absorption"], absorbed)
        np.testing.assert_allclose(own["absorption_fraction"], absorbed)
