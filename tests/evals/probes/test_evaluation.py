"""The evaluation as a whole: activations at last tokens, and its numbers, on meshes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae import lm as lms
from jaxsae.evals import EvaluationConfigs, measure, probes
from jaxsae.evals.probes import linear
from jaxsae.evals.probes.evaluation import figure
from jaxsae.evals.probes.texts import last_activations, token_ids
from tests.evals.subjects import MESHES, on_files, on_text, placed, random_sae

HOOK = "blocks.1.hook_resid_pre"


@pytest.fixture
def model(x64, tiny_lm):
    lm = lms.load(str(tiny_lm), dtype=jnp.float64)
    return lm, lms.load_tokenizer(lm)


def subject_of(model, mesh=(1, 1), n=64, skip=None):
    lm, tokenizer = model
    subject = on_text(mesh, random_sae(32, n), HOOK, lm=lm)
    subject.source.skip = skip
    return replace(subject, tokenizer=lambda: tokenizer)


def write(folder, texts=40):
    """Two tasks that share texts, of which one is easy."""
    random, lines = np.random.default_rng(0), []
    for i in range(texts):
        words = " ".join(random.choice(["def", "self", "return", "x", "import"], size=random.integers(1, 30)))
        split = "train" if i % 2 else "test"
        for task, label in (("ends_with_bracket", i // 2 % 2), ("is_long", int(len(words) > 60))):
            lines.append({"task": task, "split": split, "text": words + (" )", " (")[i // 2 % 2], "label": label})
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_activations_are_those_of_each_text_alone(model):
    lm, tokenizer = model
    texts = ["def f(x):", "", "a", "import os\n" * 30, "return self.value"]
    skip = tokenizer.encode(["a"])[0][-1]
    subject = subject_of(model, (2, 4), skip=skip)
    ids = token_ids(tokenizer, texts, 20)
    assert [len(row) for row in ids][1:4] == [0, 1, 20]
    assert ids[3] == tokenizer.encode([texts[3]])[0][-20:]
    x, kept = last_activations(subject, ids)
    assert kept.tolist() == [True, False, False, True, True] and not x[1].any()
    for i in (0, 3, 4):
        alone = lm.prefix(np.array([ids[i]]), HOOK)[0, -1]
        np.testing.assert_allclose(x[i], alone, atol=1e-10)


def test_a_context_begins_with_its_token_and_keeps_it(model):
    _, tokenizer = model
    tokenizer = replace(tokenizer, bos=7)
    assert token_ids(tokenizer, ["x = 1", "import os " * 30], 6)[1][0] == 7
    assert len(token_ids(tokenizer, ["import os " * 30], 6)[0]) == 6


def test_results_are_the_same_on_every_mesh(model, tmp_path):
    config = probes.Config(folder=str(write(tmp_path)))
    one, many = (measure("probes", subject_of(model, mesh), EvaluationConfigs(probes=config)) for mesh in MESHES)
    flat = lambda result: jax.tree.leaves_with_path(result)
    assert [path for path, _ in flat(one)] == [path for path, _ in flat(many)]
    for (path, a), (_, b) in zip(flat(one), flat(many)):
        if isinstance(a, str):
            assert a == b
        else:
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9, err_msg=str(path))
    figure(one, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000


def test_numbers_of_a_task_are_those_of_plain_code(model, tmp_path):
    _, tokenizer = model
    subject = subject_of(model)
    result = probes.run(subject, probes.Config(folder=str(write(tmp_path))))
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    errors = {}
    for name, own in result["per_task"].items():
        rows_of_task = [row for row in rows if row["task"] == name]
        x, _ = last_activations(subject, token_ids(tokenizer, [row["text"] for row in rows_of_task], 64))
        y = np.array([row["label"] for row in rows_of_task])
        train = np.array([row["split"] == "train" for row in rows_of_task])
        unit = x - x.mean(1, keepdims=True)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        z = (unit - np.asarray(subject.sae.b_dec)) @ np.asarray(subject.sae.W_enc).T + np.asarray(subject.sae.b_enc)
        for numbers, prefix in ((z, ""), (x, "channel_")):
            fitted = probes.fit(numbers[train], y[train])
            i = int(fitted.loss.argmin())
            assert own["channel" if prefix else "latent"] == i
            chosen = np.logaddexp(0, (1 - 2 * y[~train]) * (numbers[~train, i] * fitted.w[i] + fitted.b[i]))
            np.testing.assert_allclose(own[f"{prefix}loss"], chosen.mean(), rtol=1e-6)
            if not prefix:
                np.testing.assert_allclose(own["train_loss"], fitted.loss[i], rtol=1e-6)
                for row, loss in zip([r for r, t in zip(rows_of_task, train) if not t], chosen):
                    errors.setdefault(row["text"], 0)
                    errors[row["text"]] += (loss - chosen.mean()) / len(chosen) / 2
        share = y[train].mean()
        entropy = -(y[~train] * np.log(share) + (1 - y[~train]) * np.log(1 - share)).mean()
        np.testing.assert_allclose(own["prevalence_loss"], entropy, rtol=1e-6)
    np.testing.assert_allclose(result["loss"], np.mean([own["loss"] for own in result["per_task"].values()]))
    half = 1.96 * np.sqrt(sum(error**2 for error in errors.values()))
    np.testing.assert_allclose(result["loss_interval"], [result["loss"] - half, result["loss"] + half], rtol=1e-6)
    assert result["tasks"] == 2 and result["texts"] <= 40 and result["dropped"] == result["left_out"] == 0


def test_a_direction_that_is_planted_is_found(model, tmp_path):
    subject = subject_of(model)
    rows = [json.loads(line) for line in (write(tmp_path) / "t.jsonl").read_text().splitlines()[::2]]
    x, _ = last_activations(subject, token_ids(model[1], [row["text"] for row in rows], 64))
    unit = x - x.mean(1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    direction = linear.fit(unit, np.array([row["label"] for row in rows]), 1e-6)[:-1]
    # The task is easy: some random directions separate it, too.
    sae = random_sae(32).replace(W_enc=jnp.zeros((64, 32)).at[17].set(direction))
    planted = replace(subject, sae=placed(subject.mesh, sae))
    result = probes.run(planted, probes.Config(folder=str(tmp_path)))["per_task"]["ends_with_bracket"]
    assert result["latent"] == 17 and result["loss"] < 0.1 < result["prevalence_loss"]


def test_texts_that_training_left_out_are_dropped_and_said_to_be(model, tmp_path):
    last = model[1].encode(["x ("])[0][-1]
    result = probes.run(subject_of(model, skip=last), probes.Config(folder=str(write(tmp_path))))
    # One task loses a class, the other half of its texts.
    assert result["left_out"] == 1 and [*result["per_task"]] == ["is_long"] and result["dropped"] == 40


def test_a_model_without_a_tokenizer_is_refused(model):
    with pytest.raises(jaxsae.BadInput, match="--metrics probes reads text, and there is no tokenizer"):
        measure("probes", on_text((1, 1), random_sae(32), HOOK, lm=model[0]))
    with pytest.raises(jaxsae.BadInput, match="needs a language model"):
        measure("probes", on_files((1, 1), random_sae(12, dtype="float32"), np.ones((2, 5, 12), "f")))
    with pytest.raises(jaxsae.BadInput, match=r"--probes\.context is 0"):
        probes.Config(context=0)
