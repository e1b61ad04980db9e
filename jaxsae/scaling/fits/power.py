"""L = a x^b. theta = (log a, b)."""

import numpy as np

from jaxsae.scaling.fits.law import Law, least_squares


def _basis(x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones(len(x)), x[:, 0]], axis=1)


LAW = Law(
    formula="L = a x^b",
    parameters=("a", "b"),
    log_loss=lambda theta, x: theta @ _basis(x).T,
    jacobian=lambda theta, x: np.broadcast_to(_basis(x), (*theta.shape[:-1], len(x), 2)),
    starts=lambda x, y: least_squares(_basis(x), y)[..., None, :],
    logs=frozenset({"a"}),
)
