"""The compute frontier: of many training curves, the least loss for each amount of compute.

Each run counts once, so that points are as independent as runs are: with the middle of the stretch of compute, in
logarithms, over which it is the best of all (of losses that are sums of powers of size and tokens, the curve touches
the frontier there exactly). A run's curve is the least loss that it has reached so far. A run that is the best from its
own first point on, or up to its last one, has no such middle: it is left out, unless runs are single points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxsae.errors import BadInput

# Points of the grid of compute on which curves are compared.
GRID = 2000


@dataclass(frozen=True)
class Frontier:
    """Points of the frontier, one for each of G runs."""

    compute: np.ndarray  # [G], rising
    loss: np.ndarray  # [G]
    runs: tuple[int, ...]  # [G] numbers of the runs
    grid: np.ndarray  # [GRID] compute
    envelope: np.ndarray  # [GRID] the least loss of all runs there; infinite before the first point


def frontier(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Frontier:
    """The frontier of training curves, each (compute [P], loss [P]) with any P. Raises BadInput if it is empty."""
    logs = [_reached(*curve) for curve in curves]
    low, high = min(c[0] for c, _ in logs), max(c[-1] for c, _ in logs)
    grid = np.union1d(np.linspace(low, high, GRID), np.concatenate([c for c, _ in logs]))
    losses = np.stack(
        [np.interp(grid, c, y, left=np.inf) if len(c) > 1 else np.where(grid < c, np.inf, y) for c, y in logs]
    )
    best = np.argmin(losses, axis=0)
    envelope = losses.min(0)
    points = []
    for run, (c, y) in enumerate(logs):
        own = np.flatnonzero(best == run)
        if not len(own):
            continue
        # A noisy curve may be best in several places: the longest one counts.
        stretches = np.split(own, np.flatnonzero(np.diff(own) > 1) + 1)
        stretch = max(stretches, key=lambda s: grid[s[-1]] - grid[s[0]])
        if len(c) == 1:
            points.append((c[0], y[0], run))
            continue
        low, high = grid[stretch[0]], grid[stretch[-1]]
        if low > c[0] and high < c[-1]:
            middle = (low + high) / 2
            points.append((middle, _smooth(c, y, low, high, middle), run))
    points.sort()
    if not points:
        raise BadInput(
            "no run becomes the best after its first point and stops being it before its last one: give longer curves, "
            "of more sizes"
        )
    c, y, runs = zip(*points)
    return Frontier(np.exp(c), np.exp(y), runs, np.exp(grid), np.exp(envelope))


def _reached(compute, loss):
    """Logarithms of a curve in the order of its compute, where each loss is the least so far."""
    order = np.argsort(compute)
    return np.log(compute[order]), np.minimum.accumulate(np.log(loss[order]))


def _smooth(c, y, low, high, at):
    """A curve's value at `at`, from the parabola through its points from low to high if there are enough."""
    inside = (c >= low) & (c <= high)
    if inside.sum() < 6:
        return np.interp(at, c, y)
    return np.polynomial.Polynomial.fit(c[inside], y[inside], 2)(at)
