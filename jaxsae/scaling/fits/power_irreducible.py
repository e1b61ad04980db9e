"""L = e + a x^b, a power law with an irreducible term e >= 0. theta = (e, log a, b)."""

import numpy as np

from jaxsae.scaling.fits import power
from jaxsae.scaling.fits.law import Law

# Shares of the least loss that the irreducible term starts from.
SHARES = np.array([0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.93, 0.97, 0.99])


def _terms(theta: np.ndarray, x: np.ndarray):
    """The power law [..., N] and L [..., N]."""
    reducible = np.exp(power.LAW.log_loss(theta[..., 1:], x))
    return reducible, theta[..., :1] + reducible


def _jacobian(theta, x):
    reducible, loss = _terms(theta, x)
    by_floor, by_log_a = 1 / loss, reducible / loss
    return np.stack([by_floor, by_log_a, by_log_a * x[:, 0]], axis=-1)


def _starts(x, y):
    """What remains above each floor is a power law, fitted in closed form."""
    loss = np.exp(y)[..., None, :]
    floor = SHARES[:, None] * loss.min(-1, keepdims=True)
    rest = power.LAW.starts(x, np.log(loss - floor))[..., 0, :]
    return np.concatenate([floor, rest], axis=-1)


LAW = Law(
    formula="L = e + a x^b",
    parameters=("e", "a", "b"),
    log_loss=lambda theta, x: np.log(_terms(theta, x)[1]),
    jacobian=_jacobian,
    starts=_starts,
    logs=frozenset({"a"}),
    floors=frozenset({"e"}),
    without_floor=power.LAW,
)
