"""NMSE and L0 against NumPy: whole, by position, without position 0, over several batches."""

import jax
import numpy as np
import pytest

from jaxsae.evals import reconstruction

CONTEXTS, POSITIONS, WIDTH = 24, 5, 8
VIEWS = {"all": slice(None), "no_pos0": slice(1, None)}


def example(dtype=np.float64, offset=2.0):
    """x and xhat [b, T, d], L0 [b, T]; position 0 is far larger than the others, as in GPT-2."""
    random = np.random.default_rng(0)
    x = offset + random.normal(size=(CONTEXTS, POSITIONS, WIDTH))
    x[:, 0] *= 30
    xhat = x + 0.3 * random.normal(size=x.shape)
    return x.astype(dtype), xhat.astype(dtype), random.integers(9, size=x.shape[:2])


def total(x, xhat, l0, batches=1):
    parts = [a.reshape(batches, -1, *a.shape[1:]) for a in (x, xhat, l0)]
    out = {}
    for batch in zip(*parts):
        for name, value in jax.jit(reconstruction.sums)(*batch).items():
            out[name] = out.get(name, 0) + np.asarray(value, np.float64)
    return out


def views(sums, positions):
    return {name: value[positions] for name, value in sums.items()}


def plain_nmse(x, xhat):
    return ((x - xhat) ** 2).sum() / ((x - x.mean((0, 1))) ** 2).sum()


@pytest.mark.parametrize("positions", VIEWS.values(), ids=VIEWS)
def test_metrics_equal_numpy(x64, positions):
    x, xhat, l0 = example()
    have = reconstruction.metrics(views(total(x, xhat, l0), positions), mse_scale=0.7)
    x, xhat, l0 = x[:, positions], xhat[:, positions], l0[:, positions]
    want = {"loss": 0.7 * ((x - xhat) ** 2).mean(), "nmse": plain_nmse(x, xhat), "l0": l0.mean()}
    assert have.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, rtol=1e-12, err_msg=name)


def test_each_position_is_held_against_the_mean_of_all(x64):
    x, xhat, l0 = example()
    error, spread = (x - xhat) ** 2, (x - x.mean((0, 1))) ** 2
    have = reconstruction.nmse_by_position(total(x, xhat, l0))
    np.testing.assert_allclose(have, error.sum((0, 2)) / spread.sum((0, 2)), rtol=1e-12)
    # Weighted with the spreads, they give the whole.
    whole = reconstruction.metrics(total(x, xhat, l0), 1.0)["nmse"]
    np.testing.assert_allclose(np.average(have, weights=spread.sum((0, 2))), whole, rtol=1e-12)


@pytest.mark.parametrize("positions", VIEWS.values(), ids=VIEWS)
def test_predicting_the_mean_has_nmse_and_loss_one(x64, positions):
    x, _, l0 = example()
    mean = np.broadcast_to(x[:, positions].mean((0, 1)), x.shape)
    scale = 1 / ((x - mean)[:, positions] ** 2).mean()
    have = reconstruction.metrics(views(total(x, mean, l0), positions), scale)
    np.testing.assert_allclose([have["nmse"], have["loss"]], 1, rtol=1e-12)


def test_a_perfect_reconstruction_has_nmse_zero(x64):
    x, _, l0 = example()
    sums = total(x, x, l0)
    assert reconstruction.metrics(sums, 1.0)["nmse"] == 0
    assert reconstruction.nmse_by_position(sums) == [0] * POSITIONS


@pytest.mark.parametrize("batches", [2, 3, 24])
def test_batches_add_up(x64, batches):
    parts = example()
    one, many = total(*parts), total(*parts, batches)
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-12, err_msg=name)


def test_nmse_does_not_depend_on_units_or_on_the_loss(x64):
    x, xhat, l0 = example()
    want = reconstruction.metrics(total(x, xhat, l0), 1.0)
    have = reconstruction.metrics(total(-7 * x + 5, -7 * xhat + 5, l0), 3.0)
    np.testing.assert_allclose(have["nmse"], want["nmse"], rtol=1e-12)
    np.testing.assert_allclose(have["loss"], 3 * 49 * want["loss"], rtol=1e-12)


@pytest.mark.parametrize("offset, tolerance", [(0, 1e-6), (10, 1e-4), (100, 1e-2)])
def test_sums_in_float32_lose_digits_only_to_a_mean_far_from_zero(offset, tolerance):
    # The spread is a difference of sums: digits go with the squared ratio of mean and deviation,
    # which is below 1 for activations of unit norm.
    x, xhat, l0 = (a[:, 1:] for a in example(np.float32, offset))
    have = reconstruction.metrics(total(x, xhat, l0), 1.0)["nmse"]
    want = plain_nmse(x.astype(np.float64), xhat.astype(np.float64))
    np.testing.assert_allclose(have, want, rtol=tolerance)
