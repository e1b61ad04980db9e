"""NMSE, its spread and its standard error from sums around a center, compared with NumPy."""

import jax
import numpy as np
import pytest

from jaxsae.evals import reconstruction
from jaxsae.evals.reconstruction import VIEWS

CONTEXTS, POSITIONS, WIDTH = 24, 5, 8


def example(dtype=np.float64, offset=2.0):
    """x and xhat [b, T, d]; position 0 is far larger than the others, as in GPT-2."""
    random = np.random.default_rng(0)
    x = offset + random.normal(size=(CONTEXTS, POSITIONS, WIDTH))
    x[:, 0] *= 30
    xhat = x + 0.3 * random.normal(size=x.shape)
    return x.astype(dtype), xhat.astype(dtype)


@jax.jit
def centers(x, mask):
    return reconstruction.centers(x, mask)


@jax.jit
def squares(x, mask, center):
    return reconstruction.squares(x, mask, center)


def sums(x, batches=1):
    """Squares [C, T] of each view, deviations [T, d], the centers: batches of which the last has a masked context."""
    mask, out = np.ones((CONTEXTS // batches, POSITIONS), bool), []
    center = centers(x[: CONTEXTS // batches], mask)
    for batch in np.split(x, batches):
        out.append(jax.device_get(squares(batch, mask, center)))
    square = {view: np.concatenate([part[0][view] for part in out]).astype(np.float64) for view in VIEWS}
    return square, sum(np.float64(part[1]) for part in out), jax.device_get(center)


def spread(x, view, batches=1):
    """What the standard metrics make of the sums: the spread of a view, [] and by context [C]."""
    square, deviation, center = sums(x, batches)
    tokens = x[:, VIEWS[view]].shape[0] * x[:, VIEWS[view]].shape[1]
    moved = deviation[VIEWS[view]].sum(0) + tokens * (np.float64(center["all"]) - center[view])
    of_contexts = square[view][:, VIEWS[view]].sum(1)
    return reconstruction.spread_of(of_contexts.sum(), moved, tokens), of_contexts


def plain_spread(x):
    return ((x - x.mean((0, 1))) ** 2).sum()


@pytest.mark.parametrize("batches", [1, 2, 24])
@pytest.mark.parametrize("view", VIEWS)
def test_spreads_equal_numpy_however_the_batches_are(x64, view, batches):
    x, _ = example()
    np.testing.assert_allclose(spread(x, view, batches)[0], plain_spread(x[:, VIEWS[view]]), rtol=1e-12)


@pytest.mark.parametrize("batches", [1, 3])
def test_each_position_is_compared_with_the_mean_of_all(x64, batches):
    x, xhat = example()
    square, deviation, _ = sums(x, batches)
    error = ((x - xhat) ** 2).sum((0, 2))
    by_position = ((x - x.mean((0, 1))) ** 2).sum((0, 2))
    have = reconstruction.nmse_by_position(error, square["all"].sum(0), deviation, np.full(POSITIONS, CONTEXTS))
    np.testing.assert_allclose(have, error / by_position, rtol=1e-10)
    # Weighted with the spreads, they give the whole.
    np.testing.assert_allclose(np.average(have, weights=by_position), error.sum() / plain_spread(x), rtol=1e-12)


def test_contexts_that_fill_up_a_batch_do_not_count(x64):
    x, _ = example()
    mask = np.broadcast_to(np.arange(CONTEXTS)[:, None] < 20, (CONTEXTS, POSITIONS))
    junk = np.where(mask[..., None], x, 1e6)
    center = centers(junk, mask)
    np.testing.assert_allclose(center["no_pos0"], x[:20, 1:].mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(squares(junk, mask, center)[1].sum(0), 0, atol=1e-9)


@pytest.mark.parametrize("offset", [0, 10, 1000])
def test_sums_in_float32_keep_their_digits_if_the_mean_is_far_from_zero(offset):
    x, _ = (a[:, 1:] for a in example(np.float32, offset))
    x = np.concatenate([x[:, :1], x], 1)
    np.testing.assert_allclose(spread(x, "all", 3)[0], plain_spread(x.astype(np.float64)), rtol=1e-4)


def test_the_standard_error_of_a_ratio_is_that_of_resampling():
    random = np.random.default_rng(0)
    b = random.gamma(20, size=400)
    a = 0.3 * b + random.normal(size=400)
    ratio = a.sum() / b.sum()
    draws = [(a[i].sum() / b[i].sum()) for i in random.integers(400, size=(2000, 400))]
    np.testing.assert_allclose(reconstruction.ratio_error(a, b, ratio), np.std(draws), rtol=0.05)
    np.testing.assert_allclose(reconstruction.ratio_error(a, np.ones(400), a.mean()), a.std(ddof=1) / 20, rtol=1e-12)
    # Where zeros predict better than the activation, what is gained over them is negative.
    assert reconstruction.ratio_error(a, -b, -ratio) == reconstruction.ratio_error(a, b, ratio)
    assert reconstruction.ratio_error(a[:1], b[:1], ratio) is None
    assert reconstruction.ratio(1.0, 0) is None and reconstruction.ratio_error(a, 0 * a, None) is None
