"""Probes of one number against scikit-learn, SciPy and NumPy."""

import jax
import numpy as np
import pytest
import scipy.optimize

from jaxsae.evals import probes
from jaxsae.evals.probes.newton import PENALTY


def entropy(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def log_loss(w, b, z, y):
    return np.logaddexp(0, (1 - 2 * y)[:, None] * (z * w + b)).mean(0)


def penalised(at, s, y):
    return np.logaddexp(0, (1 - 2 * y) * (at[0] * s + at[1])).mean() + PENALTY / 2 * (at @ at)


def slope_of_penalised(at, s, y):
    wrong = scipy.special.expit(at[0] * s + at[1]) - y
    return np.array([s, np.ones_like(s)]) @ wrong / len(y) + PENALTY * at


def data(N=300, m=7, seed=0):
    random = np.random.default_rng(seed)
    z = random.normal(size=(N, m))
    y = (random.random(N) < 1 / (1 + np.exp(-2 * z[:, 3] + 0.5))).astype(float)
    return z, y


def sparse_data(N=400):
    """Rare latents, of one class or of both, and a heavy tail: from w = 0 a whole Newton step goes too far."""
    random = np.random.default_rng(1)
    y = (np.arange(N) % 4 == 0).astype(float)
    z = np.zeros((N, 5))
    z[::4, 0][:3] = 9.0
    z[:5, 1] = [1, 2, 3, 1, 30]
    z[:, 2] = np.exp(3 * random.normal(size=N)) * (random.random(N) < 0.05 + 0.3 * y)
    z[7, 3] = 1.0
    z[:, 4] = random.standard_cauchy(N) + y
    return z, y


def test_probes_are_those_of_scikit_learn(x64):
    linear_model = pytest.importorskip("sklearn.linear_model")
    z, y = data()
    z = z * [1, 1e-3, 1, 1, 50, 1, 1] + [0, 5, 0, 0, 7, -3, 0]
    fitted = probes.fit(z, y)
    for j in range(z.shape[1]):
        mean, std = z[:, j].mean(), z[:, j].std()
        peer = linear_model.LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit((z[:, [j]] - mean) / std, y)
        np.testing.assert_allclose(fitted.w[j] * std, peer.coef_[0, 0], atol=1e-4)
        np.testing.assert_allclose(fitted.b[j] + fitted.w[j] * mean, peer.intercept_[0], atol=1e-4)
    np.testing.assert_allclose(fitted.loss, log_loss(fitted.w, fitted.b, z, y), rtol=1e-9)


@pytest.mark.parametrize("dtype, close", [("float64", 1e-9), ("float32", 2e-6)])
@pytest.mark.parametrize("make", [data, sparse_data])
def test_probes_reach_the_least_penalised_loss(make, dtype, close):
    with jax.enable_x64(dtype == "float64"):
        z, y = make()
        fitted = jax.device_get(probes.fit(z.astype(dtype), y.astype(dtype)))
    mean, std = z.mean(0), z.std(0)
    for j in range(z.shape[1]):
        s = (z[:, j] - mean[j]) / std[j]
        best = scipy.optimize.minimize(
            penalised, [0, 0], (s, y), jac=slope_of_penalised, method="BFGS", options={"gtol": 1e-11}
        )
        at = np.array([fitted.w[j] * std[j], float(fitted.b[j]) + float(fitted.w[j]) * mean[j]])
        assert penalised(at, s, y) - best.fun < close


def test_a_loss_is_the_mean_of_the_negative_log_likelihoods(x64):
    z, y = data()
    some = probes.Probes(np.linspace(-3, 3, 7), np.linspace(1, 2, 7), None)
    np.testing.assert_allclose(probes.loss(some, z, y.astype(bool)), log_loss(some.w, some.b, z, y), rtol=1e-12)


def test_the_planted_latent_has_the_least_loss():
    random = np.random.default_rng(3)
    y = random.integers(2, size=200)
    z = random.normal(size=(200, 1000)).astype("f")
    z[:, 417] += 2 * y
    fitted = probes.fit(z, y)
    assert int(fitted.loss.argmin()) == 417
    held_out = random.normal(size=(200, 1000)) + 2 * y[:, None]
    assert 0.2 < probes.loss(fitted, held_out, y)[417] < 0.45


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_separable_task_has_a_finite_probe_and_almost_no_loss(dtype):
    with jax.enable_x64(dtype == "float64"):
        y = np.arange(100) % 2
        z = np.stack([y + 0.1 * np.sin(np.arange(100)), 1e4 * y, -y], 1).astype(dtype)
        fitted = jax.device_get(probes.fit(z, y))
    assert np.isfinite([*fitted.w, *fitted.b]).all() and (fitted.loss < 2e-4).all()
    assert fitted.w[0] > 0 > fitted.w[2]
    # Alike but for their units and signs: the probes are, too.
    np.testing.assert_allclose(fitted.w[1] * 1e4, -fitted.w[2], rtol=1e-3)
    np.testing.assert_allclose(fitted.loss[1], fitted.loss[2], rtol=0.05, atol=1e-6)


def test_a_constant_latent_and_a_single_class_have_finite_probes():
    y = (np.arange(90) % 3 == 0).astype("f")
    constant = probes.fit(np.full((90, 2), [0.1, 0], "f"), y)
    np.testing.assert_array_equal(constant.w, [0, 0])
    np.testing.assert_allclose(constant.loss, [entropy(1 / 3)] * 2, rtol=1e-5)
    single = probes.fit(data(90)[0].astype("f"), np.ones(90))
    assert np.isfinite(np.asarray([single.w, single.b])).all() and float(single.loss.max()) < 1e-4


def test_a_latent_far_from_zero_keeps_its_probe():
    z, y = data()
    near, far = probes.fit(z.astype("f"), y), probes.fit((z + 100).astype("f"), y)
    np.testing.assert_allclose(far.loss, near.loss, atol=1e-5)
    np.testing.assert_allclose(far.w, near.w, atol=1e-3)


def test_examples_of_weight_zero_do_not_matter(x64):
    z, y = data()
    weight = (np.arange(len(y)) < 200).astype(float)
    for name in ("w", "b", "loss"):
        some, all_of_them = probes.fit(z, y, weight), probes.fit(z[:200], y[:200])
        np.testing.assert_allclose(getattr(some, name), getattr(all_of_them, name), rtol=1e-9)
