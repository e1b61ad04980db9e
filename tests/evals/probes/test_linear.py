"""Logistic regression with a penalty, AUC and F1 against scikit-learn."""

import numpy as np
import pytest

from jaxsae.evals.probes import linear

linear_model, metrics = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.metrics")


def data(N=200, p=6, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, p)) * np.linspace(0.2, 3, p)
    return x, (x[:, 0] * 4 + x[:, -1] + random.logistic(size=N) > 1).astype(int)


@pytest.mark.parametrize("strength", [1.0, 1e-3, 1e-8])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_penalised_probe_is_that_of_scikit_learn(strength, balanced):
    x, y = data()
    peer = linear_model.LogisticRegression(
        C=1 / (strength * len(x)), tol=1e-9, max_iter=10_000, class_weight="balanced" if balanced else None
    ).fit(x, y)
    theta = linear.fit(x, y, strength, balanced=balanced)
    np.testing.assert_allclose(theta, [*peer.coef_[0], *peer.intercept_], rtol=1e-3, atol=1e-4)


def test_the_full_probe_is_the_best_of_its_strengths_in_cross_validation():
    x, y = data(120, 5)
    x_test = data(50, 5, seed=1)[0]
    s, s_test = (x - x.mean(0)) / x.std(0), (x_test - x.mean(0)) / x.std(0)
    fold = np.empty(len(y), int)
    fold[np.argsort(y, kind="stable")] = np.arange(len(y)) % 3
    model = lambda strength, N: linear_model.LogisticRegression(C=1 / (strength * N), tol=1e-9, max_iter=10_000)

    def held_out(strength):
        total = 0
        for number in range(3):
            some = fold != number
            p = model(strength, some.sum()).fit(s[some], y[some]).predict_proba(s[~some])[:, 1]
            total += metrics.log_loss(y[~some], p) * (~some).sum()
        return total

    best = min(linear.STRENGTHS, key=held_out)
    expected = model(best, len(y)).fit(s, y).decision_function(s_test)
    np.testing.assert_allclose(linear.full_probe(x, y, x_test), expected, atol=1e-3)


def test_more_numbers_than_examples_give_the_same_full_probe():
    x, y = data(60, 4)
    wide = np.random.default_rng(0).normal(size=(4, 300))
    more = np.concatenate([x, x @ wide], 1)
    logits = linear.full_probe(more, y, more[:20])
    s = (more - more.mean(0)) / more.std(0)
    peers = [
        linear_model.LogisticRegression(C=1 / (strength * 60), tol=1e-9, max_iter=10_000).fit(s, y)
        for strength in linear.STRENGTHS
    ]
    assert min(np.abs(logits - peer.decision_function(s[:20])).max() for peer in peers) < 2e-3


@pytest.mark.parametrize("N", [100, 300])
def test_the_probe_of_a_few_latents_ranks_test_texts_as_sae_probes_does(N):
    x, y = data(N, 2)
    x_test, y_test = data(300, 2, seed=1)
    score = []
    if N >= 128:
        inside = np.arange(N) < N - min(N // 5, 100)
        for C in np.logspace(5, -5, 10):
            peer = linear_model.LogisticRegression(C=C, max_iter=1000).fit(x[inside], y[inside])
            score.append(metrics.roc_auc_score(y[~inside], peer.predict_proba(x[~inside])[:, 1]))
        C = np.logspace(5, -5, 10)[np.argmax(score)]
        peer = linear_model.LogisticRegression(C=C, max_iter=1000, tol=1e-9).fit(x, y)
        np.testing.assert_allclose(linear.sparse_probe(x, y, x_test), peer.decision_function(x_test), atol=1e-3)
    assert linear.auc(linear.sparse_probe(x, y, x_test), y_test) > 0.8


def test_auc_and_f1_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    scores, y = random.integers(6, size=80), random.integers(2, size=80)
    np.testing.assert_allclose(linear.auc(scores, y), metrics.roc_auc_score(y, scores))
    for predicted in (scores > 2, np.ones(80, bool)):
        np.testing.assert_allclose(linear.weighted_f1(predicted, y), metrics.f1_score(y, predicted, average="weighted"))
    assert linear.auc(scores, np.ones(80)) is None


def test_a_separable_task_has_a_finite_penalised_probe():
    x = np.arange(40.0)[:, None]
    theta = linear.fit(x, (x[:, 0] > 20).astype(int), 1e-8)
    assert np.isfinite(theta).all() and (np.sign(linear.logits(theta, x)) == np.where(x[:, 0] > 20, 1, -1)).all()
