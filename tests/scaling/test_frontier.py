"""The compute frontier against one that is known: of L(n, T) = e + A n^-alpha + B T^-beta with compute 6 n T.

The least loss for compute C is e + a C^b, with b = -alpha beta / (alpha + beta).
"""

import numpy as np
import pytest
from scipy import optimize

from jaxsae.errors import BadInput
from jaxsae.scaling import fits
from jaxsae.scaling.fits import power_irreducible
from jaxsae.scaling.fits.estimate import critical, estimate, excess
from jaxsae.scaling.fits.frontier import frontier
from tests.marks import slow

E, A, ALPHA, B, BETA = 0.1, 3.0, 0.35, 25.0, 0.3
SLOPE = -ALPHA * BETA / (ALPHA + BETA)


def curves(sizes, rng=None, of_run=0.0, of_row=0.0):
    """Training curves (compute [200], loss [200]) of each size, each with errors of its own."""
    out = []
    for n in sizes:
        tokens = np.geomspace(2e3, 3e7, 200)
        loss = E + A * n**-ALPHA + B * tokens**-BETA
        if rng is not None:
            loss = loss * np.exp(of_run * rng.standard_normal() + of_row * rng.standard_normal(200))
        out.append((6 * n * tokens, loss))
    return out


def coefficient() -> float:
    """a, by minimising over n at one amount of compute."""
    loss = lambda log_n: A * np.exp(-ALPHA * log_n) + B * (1e12 / 6 / np.exp(log_n)) ** -BETA
    return optimize.minimize_scalar(loss, (1, 20)).fun * 1e12**-SLOPE


def test_the_frontier_of_known_curves():
    best = frontier(curves(64 * 2.0 ** np.arange(8)))
    # The smallest is the best from its start on, the largest to its end.
    assert best.runs == tuple(range(1, 7))
    np.testing.assert_allclose(best.loss, E + coefficient() * best.compute**SLOPE, rtol=1e-4)
    known = np.isfinite(best.envelope)
    assert (np.diff(best.envelope[known]) <= 0).all() and known.mean() > 0.99
    result = fits.fit("frontier", {"flops": best.compute}, best.loss)
    assert result.params == pytest.approx({"e": E, "a": coefficient(), "b": SLOPE}, rel=1e-2)


def test_single_points_are_their_own_frontier():
    compute = np.array([1.0, 2.0, 4.0, 3.0, 8.0])
    loss = np.array([0.9, 0.5, 0.4, 0.7, 0.3])
    best = frontier([(c[None], y[None]) for c, y in zip(compute, loss)])
    # 3 costs more than 2 and is no better.
    assert best.compute == pytest.approx([1, 2, 4, 8]) and best.loss == pytest.approx([0.9, 0.5, 0.4, 0.3])


def test_curves_that_rise_count_as_what_they_had_reached():
    one = (np.array([3.0, 1.0, 2.0]), np.array([0.9, 1.0, 0.5]))
    best = frontier([one, (np.array([1.0]), np.array([2.0])), (np.array([4.0]), np.array([0.4]))])
    assert best.envelope[np.searchsorted(best.grid, 2.9)] == pytest.approx(0.5)


def test_one_size_has_no_frontier():
    with pytest.raises(BadInput, match="of more sizes"):
        frontier(curves([64.0]))


@pytest.mark.parametrize("of_run, of_row", [slow(0.005, 0.01), slow(0.01, 0.02)])
def test_intervals_of_noisy_curves_hold_the_truth(of_run, of_row):
    rng, held = np.random.default_rng(0), []
    truth = np.array([[E, np.log(coefficient()), SLOPE]])
    for _ in range(200):
        best = frontier(curves(64 * 2.0 ** np.arange(8), rng, of_run, of_row))
        found = estimate(power_irreducible.LAW, np.log(best.compute)[:, None], np.log(best.loss)[None])
        held.append([excess(found, j, truth[:, j], truth[None])[0][0] <= critical(found) for j in range(3)])
    shares = np.mean(held, axis=0)
    assert (shares >= 0.90).all() and (shares <= 0.985).all(), shares
