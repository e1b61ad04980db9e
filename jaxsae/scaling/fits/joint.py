"""L(n, k) of Gao et al. 2024, sec. 3.1.3: a power law in n whose exponent depends on k, and an irreducible term.

    L = exp(alpha + beta_k log k + beta_n log n + gamma log k log n) + exp(zeta + eta log k)

`LAW` has all six parameters, `PRODUCT` the first term alone.
"""

from collections.abc import Mapping

import numpy as np

from jaxsae.scaling.fits.estimate import Estimate, estimate, intervals
from jaxsae.scaling.fits.law import Law, least_squares

# The irreducible term starts from these shares of the least loss at each k.
SHARES = np.array([0.2, 0.5, 0.7, 0.85, 0.95])


def _reducible_basis(x: np.ndarray) -> np.ndarray:
    n, k = x[:, 0], x[:, 1]
    return np.stack([np.ones(len(x)), k, n, k * n], axis=1)


def _floor_basis(x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(x)), x[:, 1]], axis=1)


def _log_loss(theta, x):
    return np.logaddexp(theta[..., :4] @ _reducible_basis(x).T, theta[..., 4:] @ _floor_basis(x).T)


def _jacobian(theta, x):
    loss = _log_loss(theta, x)
    reducible = np.exp(theta[..., :4] @ _reducible_basis(x).T - loss)
    floor = np.exp(theta[..., 4:] @ _floor_basis(x).T - loss)
    return np.concatenate([reducible[..., None] * _reducible_basis(x), floor[..., None] * _floor_basis(x)], axis=-1)


def _starts(x, y):
    """Floors that are shares of the least loss at each k, a power of k; what remains is linear in logarithms."""
    least = np.stack([np.where(x[:, 1] == k, y, np.inf).min(-1) for k in x[:, 1]], axis=-1)[..., None, :]
    line = least_squares(_floor_basis(x), least)
    # The line lies above some points: a share of what is left below all of them.
    slack = (y[..., None, :] - line @ _floor_basis(x).T).min(-1, keepdims=True)
    line = line + np.minimum(slack, 0) * [1, 0] + np.log(SHARES)[:, None] * [1, 0]
    rest = np.log(np.exp(y[..., None, :]) - np.exp(line @ _floor_basis(x).T))
    return np.concatenate([least_squares(_reducible_basis(x), rest), line], axis=-1)


REDUCIBLE, FLOOR = ("alpha", "beta_k", "beta_n", "gamma"), ("zeta", "eta")
FORMULA = "exp(alpha + beta_k log k + beta_n log n + gamma log k log n)"

PRODUCT = Law(
    formula=f"L = {FORMULA}",
    parameters=REDUCIBLE,
    log_loss=lambda theta, x: theta @ _reducible_basis(x).T,
    jacobian=lambda theta, x: np.broadcast_to(_reducible_basis(x), (*theta.shape[:-1], len(x), 4)),
    starts=lambda x, y: least_squares(_reducible_basis(x), y)[..., None, :],
)

LAW = Law(
    formula=f"L = {FORMULA} + exp(zeta + eta log k)",
    parameters=REDUCIBLE + FLOOR,
    log_loss=_log_loss,
    jacobian=_jacobian,
    starts=_starts,
    without_floor=PRODUCT,
)


def floors(found: Estimate, columns: Mapping[str, np.ndarray]) -> dict[float, tuple[float, float, float]]:
    """{k: (irreducible loss there, low and high end of its 95 % interval)} of one table; low is 0 if there may be none.

    `columns` are n and k. In units of k in which it is 1, the logarithm of the irreducible loss is zeta.
    """
    zeta, out = LAW.parameters.index("zeta"), {}
    _, ks = columns.values()
    for k in np.unique(ks):
        there = estimate(LAW, found.x - [0, np.log(k)], found.y, found.delta)
        ends = np.exp(intervals(there, parameters=[zeta])[0])
        out[float(k)] = tuple(map(float, (np.exp(there.theta[0, zeta]), *ends)))
    return out
