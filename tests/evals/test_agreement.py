"""Agreement: tokens, numbers, faithfulness and the top-k curve against passes of the whole model."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae import lm as lms
from jaxsae.distributed.mesh import make_mesh, replicate
from jaxsae.evals import EvaluationConfigs, agreement, measure, readout
from jaxsae.evals.pairs import read, tokenise
from jaxsae.evals.topk_curve import KS, topk_curve
from jaxsae.sae.types import SAE, Spec
from tests.evals.subjects import on_text, placed
from tests.marks import slow
from tests.sae import dense

HOOK = "blocks.1.hook_resid_pre"
NOUNS, PLACES = ["for", "return", "class", "test"], ["value", "name"]


@pytest.fixture
def example(x64, tiny_lm):
    """A model in float64, its tokenizer, and rows of one template of which some share a prefix."""
    lm = lms.load(str(tiny_lm), dtype=jnp.float64)
    answers = itertools.cycle([(" is", " are"), (" are", " is"), (" for", " in")])
    prefixes = [f"The {noun} near {place}" for noun in NOUNS for place in PLACES] + ["The class near value"] * 3
    return lm, lms.load_tokenizer(lm), [row(prefix, *next(answers)) for prefix in prefixes]


def row(prefix, right, wrong):
    return {"clean_prefix": prefix, "clean_answer": right, "patch_answer": wrong}


def random_sae(n=30, activation="relu", normalise="none"):
    spec = Spec(activation, 3, normalise, "normalised", False)
    return dense.random_sae(jax.random.key(0), n, 32, spec, jnp.float64)


def identity(d=32):
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)])
    return SAE(both, jnp.zeros(2 * d), both, jnp.zeros(d), Spec("relu", 1, "none", "free", False))


def on(mesh, function, lm, *arguments):
    """function(lm, sae, ...) with everything on a mesh."""
    grid = make_mesh(*mesh)
    lay = lambda a: placed(grid, a) if isinstance(a, SAE) else a
    with jax.set_mesh(grid):
        return function(replicate(lm, grid), *map(lay, arguments))


def begun(tokenizer, row):
    """The prefix of a row after an end-of-text token."""
    return [tokenizer.end_of_text, *tokenizer.encode([row["clean_prefix"]])[0]]


class Plain:
    """Every row by itself in one padded batch, without any of the shortcuts."""

    def __init__(self, lm, tokenizer, rows):
        ids = [begun(tokenizer, r) for r in rows]
        self.lm, self.last = lm, np.array([len(i) - 1 for i in ids])
        self.tokens = np.full((len(rows), 2 + self.last.max()), tokenizer.end_of_text)
        self.words = np.full(self.tokens.shape, -1)
        for i, r in enumerate(rows):
            self.tokens[i, : len(ids[i])] = ids[i]
            start = 1
            for j, word in enumerate(r["clean_prefix"].split()):
                stop = start + len(tokenizer.encode([word if word == "The" else f" {word}"])[0])
                self.words[i, start:stop] = j
                start = stop
        first = lambda name: np.array([tokenizer.encode([r[name]])[0][0] for r in rows])
        self.right, self.wrong = first("clean_answer"), first("patch_answer")
        self.run = jax.jit(lambda lm, new: lm.run(self.tokens, {HOOK: lambda _: new}))
        self.x = lm.prefix(self.tokens, HOOK)

    def numbers(self, new):
        at = np.arange(len(self.last)), self.last
        logits = np.asarray(self.run(self.lm, new))[at]
        return logits[at[0], self.right] - logits[at[0], self.wrong]


def test_rows_become_tokens(example):
    _, tokenizer, rows = example
    pairs, dropped = tokenise(rows, tokenizer)
    assert dropped == {} and len(pairs.tokens) == 8 and len(pairs.row) == 11
    assert {len(tokenizer.encode([f" {noun}"])[0]) for noun in NOUNS} == {1, 3}
    length = pairs.last + 1
    assert len({*length}) == 2
    for r, i, right, wrong in zip(rows, pairs.row, pairs.right, pairs.wrong):
        ids = begun(tokenizer, r)
        assert length[i] == len(ids) and pairs.tokens[i, : len(ids)].tolist() == ids
        assert (pairs.tokens[i, len(ids) :] == tokenizer.end_of_text).all()
        assert pairs.answers[right] == tokenizer.encode([r["clean_answer"]])[0][0]
        assert pairs.answers[wrong] == tokenizer.encode([r["patch_answer"]])[0][0]
        for j, word in enumerate(r["clean_prefix"].split()):
            text = tokenizer.decode(pairs.tokens[i][pairs.slots[i] == j])
            assert text == (word if word == "The" else f" {word}")
        assert pairs.slots[i].max() == 3 and pairs.slots[i, 0] == -1 and (pairs.slots[i, len(ids) :] == -1).all()


def test_rows_that_cannot_be_used_are_counted(example):
    _, tokenizer, rows = example
    same = row("The class", " is", " is")
    unknown = row("The class", "", " is")
    pairs, dropped = tokenise([rows[0], same, unknown, same], tokenizer)
    assert dropped == {"answers begin alike": 2, "not in the vocabulary": 1} and len(pairs.row) == 1
    with pytest.raises(jaxsae.BadInput, match=r"none of 1 rows can be used.*answers begin alike"):
        tokenise([same], tokenizer)
    with pytest.raises(jaxsae.BadInput, match="there are none"):
        tokenise([], tokenizer)


def test_files_are_read_up_to_a_limit(tmp_path, example):
    file, rows = tmp_path / "rows.json", example[2]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert read(file) == rows and read(file, 2) == rows[:2]
    for line, message in (("{", "line 1, is not JSON"), ('{"clean_prefix": 1}', "line 1, is not a pair")):
        file.write_text(line)
        with pytest.raises(jaxsae.BadInput, match=message):
            read(file)


def test_differences_are_those_of_whole_passes(example):
    lm, tokenizer, rows = example
    have = on((2, 4), agreement.differences, lm, tokenise(rows, tokenizer)[0])
    plain = Plain(lm, tokenizer, rows)
    want = plain.numbers(plain.x)
    np.testing.assert_allclose(have, want, rtol=1e-9)
    assert agreement.accuracy(have) == (want > 0).mean()
    # What stands after a prefix does not matter.
    r = rows[0]
    logits = lm.run(jnp.array([begun(tokenizer, r)]))[0, -1]
    right, wrong = (tokenizer.encode([r[name]])[0][0] for name in ("clean_answer", "patch_answer"))
    np.testing.assert_allclose(have[0], logits[right] - logits[wrong], rtol=1e-9)


@pytest.mark.parametrize("sae, mesh", [(random_sae, (2, 3)), (identity, (1, 1))], ids=["random", "identity"])
def test_faithfulness_equals_whole_passes(example, sae, mesh):
    lm, tokenizer, rows = example
    sae, plain = sae(), Plain(lm, tokenizer, rows)
    have = on(mesh, agreement.faithfulness, lm, sae, HOOK, tokenise(rows, tokenizer)[0])
    inserted = plain.numbers(jaxsae.decode(sae, jaxsae.encode(sae, plain.x)))
    model, empty = plain.numbers(plain.x), plain.numbers(0 * plain.x)
    m, m_sae, m_empty = model.mean(), inserted.mean(), empty.mean()
    want = {
        "m_model": m,
        "m_sae": m_sae,
        "m_empty": m_empty,
        "faithfulness": m_sae / m,
        "faithfulness_paper": (m_sae - m_empty) / (m - m_empty),
        "accuracy_model": (model > 0).mean(),
        "accuracy_sae": (inserted > 0).mean(),
    }
    assert have.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, rtol=1e-9, err_msg=name)
    if sae.n == 64:
        np.testing.assert_allclose([have["faithfulness"], have["faithfulness_paper"]], 1, rtol=1e-9)


def by_whole_passes(plain, sae, ks, kept=True):
    """The curve as the paper's code has it: ablated latents are overwritten in the code, then all is run again."""
    code = jaxsae.encode(sae, plain.x)
    z = np.asarray(jaxsae.dense(code, sae.n))
    W = np.asarray(sae.W_dec) / np.linalg.norm(sae.W_dec, axis=1, keepdims=True)
    means = [z[plain.words == j].mean(0) for j in range(plain.words.max() + 1)]

    def m(ablated):
        new = z.copy()
        for j, mean in enumerate(means):
            new[plain.words == j] = np.where(ablated, mean, new[plain.words == j])
        xhat = (new @ W + np.asarray(sae.b_dec)) * code.scale[..., None] + code.mean[..., None]
        return plain.numbers(np.where(np.broadcast_to(kept, plain.words.shape)[..., None], xhat, plain.x)).mean()

    n, whole = np.arange(sae.n), m(np.zeros(sae.n, bool))
    effects = np.array([abs(whole - m(n == i)) for i in n])
    order = np.argsort(-effects, kind="stable")
    curve = [m(~np.isin(n, order[:k])) for k in ks]
    return whole, np.flatnonzero((z[plain.words >= 0] != 0).any(0)), effects, order, curve


@pytest.mark.parametrize(
    "activation, normalise, at_once, mesh",
    [slow("relu", "none", 4096, (1, 1)), ("topk", "unit_norm", 1, (4, 2)), ("relu", "ln_std", 200, (1, 1))],
)
def test_the_curve_equals_whole_passes(example, activation, normalise, at_once, mesh):
    lm, tokenizer, rows = example
    sae, ks = random_sae(30, activation, normalise), (0, 1, 2, 7, 25, 200)
    sae = sae.replace(b_enc=sae.b_enc.at[:3].set(-1e6))
    plain = Plain(lm, tokenizer, rows)
    pairs = tokenise(rows, tokenizer)[0]
    have = on(mesh, topk_curve, lm, sae, HOOK, pairs, ks, at_once)
    m_sae, active, effects, order, curve = by_whole_passes(plain, sae, ks)
    assert set(have.latents) == set(active) and not {0, 1, 2} & set(active)
    np.testing.assert_allclose(have.m_model, plain.numbers(plain.x).mean(), rtol=1e-9)
    np.testing.assert_allclose(have.m_sae, m_sae, rtol=1e-9)
    np.testing.assert_allclose(have.effects, effects[have.latents], rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(have.latents, order[: len(active)])
    np.testing.assert_allclose(have.m, curve, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(have.m[-1], m_sae, rtol=1e-9)
    np.testing.assert_allclose(have.faithfulness, have.m / have.m_model)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)], ids=str)
def test_tokens_that_training_left_out_keep_their_stream(example, tmp_path, mesh):
    """Position 0, and the token of a noun, which is then in no slot."""
    lm, tokenizer, rows = example
    sae, plain, (skip,) = random_sae(), Plain(lm, tokenizer, rows), tokenizer.encode([" return"])[0][:1]
    kept = (plain.tokens != skip) & (np.arange(plain.tokens.shape[1]) > 0)
    assert (kept[:, 1:] < 1).any()
    (tmp_path / "near.json").write_text("\n".join(map(json.dumps, rows)))
    subject = replace(on_text(mesh, sae, HOOK, 1, lm, positions=4), tokenizer=lambda: tokenizer)
    subject.source.first, subject.source.skip = 1, skip
    config = agreement.Config(str(tmp_path))
    have = measure("agreement", subject, EvaluationConfigs(agreement=config))["near"]
    put_in = lambda new: np.where(kept[..., None], new, plain.x)
    inserted, empty = put_in(jaxsae.decode(sae, jaxsae.encode(sae, plain.x))), put_in(0)
    for name, new in (("m_model", plain.x), ("m_sae", inserted), ("m_empty", empty)):
        np.testing.assert_allclose(have[name], plain.numbers(new).mean(), rtol=1e-9, err_msg=name)
    plain.words = np.where(kept, plain.words, -1)
    pairs, ks = agreement._pairs(subject, tokenizer, tmp_path / "near.json", 100)[0], (0, 2, 25)
    curve = on(mesh, topk_curve, lm, sae, HOOK, pairs, ks)
    np.testing.assert_allclose(curve.m, by_whole_passes(plain, sae, ks, kept)[-1], rtol=1e-8)


def test_an_autoencoder_that_is_silent_has_an_empty_curve(example):
    lm, tokenizer, rows = example
    sae = random_sae()
    silent, pairs = sae.replace(b_enc=sae.b_enc - 1e6), tokenise(rows, tokenizer)[0]
    have = on((1, 1), topk_curve, lm, silent, HOOK, pairs, (0, 5))
    assert len(have.latents) == len(have.effects) == 0
    np.testing.assert_allclose(have.m, have.m_sae, rtol=1e-12)


def test_rows_of_several_templates_have_no_slots_in_common(example):
    lm, tokenizer, rows = example
    mixed, _ = tokenise([*rows, row("The class", " is", " are")], tokenizer)
    with pytest.raises(jaxsae.BadInput, match="one template"):
        topk_curve(lm, random_sae(), HOOK, mixed)


def test_a_small_model_knows_agreement(shared):
    """Both answers of 480 rows by a GPT-2 of 3 million parameters: above chance, near certainty without distractors."""
    lm = lms.load(str(shared("models/gpt2-tinystories-3m")))
    rows = read(shared("data/agreement") / "simple_train.json")
    pairs, dropped = tokenise(rows, lms.load_tokenizer(lm))
    assert dropped == {} and len(pairs.row) == 480 and len(pairs.tokens) == 40
    differences = on((1, 1), agreement.differences, lm, pairs)
    np.testing.assert_allclose(agreement.accuracy(differences), 476 / 480, atol=1.5 / 480)
    np.testing.assert_allclose(differences.mean(), 3.9414, atol=1e-3)


def test_the_evaluation_measures_every_template(example, tmp_path):
    lm, tokenizer, rows = example
    (tmp_path / "near.json").write_text("\n".join(map(json.dumps, rows)))
    subject = replace(on_text((1, 1), random_sae(), HOOK, 1, lm, positions=4), tokenizer=lambda: tokenizer)
    config = agreement.Config(str(tmp_path), examples=10, curve_examples=8)
    have = measure("agreement", subject, EvaluationConfigs(agreement=config))
    want = on((1, 1), agreement.faithfulness, lm, random_sae(), HOOK, tokenise(rows[:10], tokenizer)[0])
    assert (
        list(have) == ["tokens", "near"]
        and have["tokens"] > 0
        and have["near"]["rows"] == 10
        and have["near"]["dropped"] == 0
    )
    assert {name: have["near"][name] for name in want} == pytest.approx(want)
    assert have["near"]["curve"]["k"] == list(KS) and json.dumps(have)


def test_what_the_evaluation_needs(example, tmp_path):
    lm, tokenizer, _ = example
    subject = on_text((1, 1), random_sae(), HOOK, 1, lm, positions=4)
    with_tokenizer = replace(subject, tokenizer=lambda: tokenizer)
    for case, pairs, message in (
        (subject, None, "needs --agreement.pairs FOLDER"),
        (subject, str(tmp_path), "there is no tokenizer"),
        (with_tokenizer, str(tmp_path), "holds no .json"),
        (replace(subject, lm=None), str(tmp_path), "needs a language model"),
    ):
        with pytest.raises(jaxsae.BadInput, match=message):
            measure("agreement", case, EvaluationConfigs(agreement=agreement.Config(pairs)))


def test_answers_of_a_model_whose_logits_are_soft_capped_are_its_logits(x64):
    folder = Path(lms.__file__).parents[2] / "tests" / "lm" / "families" / "gemma2"
    lm, tokens = lms.load(str(folder), dtype=jnp.float64), jnp.arange(24).reshape(2, 12)
    pairs, last, hook = SimpleNamespace(answers=jnp.array([5, 90, 7])), jnp.array([11, 4]), "blocks.1.hook_resid_pre"
    stream = lm.prefix(tokens, hook)
    have = readout.answers(lm, readout.readout_of(lm, pairs, stream.dtype), stream, last, hook)
    np.testing.assert_allclose(have, lm.run(tokens)[jnp.arange(2), last][:, pairs.answers], atol=1e-12)
    # Without the cap they would exceed it.
    assert 0.5 < np.abs(have).max() < lm.config.logit_cap
