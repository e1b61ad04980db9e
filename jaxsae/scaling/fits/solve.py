"""The minimum of a Huber loss of log residuals, for many problems at once. M problems, N points, p parameters.

Levenberg-Marquardt with the law's own Jacobian and Huber's weights. Bootstraps and profiles need thousands of fits of a
few points each: as one array they take the time of a few calls of SciPy's optimizers, against which the tests hold it.
"""

import numpy as np

from jaxsae.scaling.fits.law import Law

STEPS = 200
# A step that gains less than this share of the objective is one of the last.
TOLERANCE = 1e-9
# An objective that rounding alone leaves.
ZERO = 1e-24


def huber(r: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Huber's loss of residuals, r^2 / 2 up to delta and linear beyond; infinite for residuals that are no numbers."""
    size = np.abs(r)
    loss = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    return np.where(np.isfinite(loss), loss, np.inf)


def solve(law: Law, x: np.ndarray, y: np.ndarray, theta: np.ndarray, delta, free=None):
    """Local minima of sum huber(y - log L(theta, x), delta) from `theta`.

    Args:
        x: log x [N, q]; y: log losses, [N] or [M, N]; theta: starts [M, p]; delta: a number or [M].
        free: which parameters may move, booleans [M, p] or [p]; default: all.
    Returns:
        theta [M, p] and the objective [M], infinite where the start has no finite loss.
    """
    theta = np.array(theta, float)
    M, p = theta.shape
    y = np.broadcast_to(y, (M, y.shape[-1]))
    delta = np.broadcast_to(np.asarray(delta, float), (M,))
    free = np.broadcast_to(True if free is None else free, (M, p))
    with np.errstate(all="ignore"):
        objective = huber(y - law.log_loss(theta, x), delta[:, None]).sum(-1)
        damping, small = np.full(M, 1e-3), np.zeros(M, int)
        active = np.flatnonzero(np.isfinite(objective))
        for _ in range(STEPS):
            if not len(active):
                break
            new = _step(law, x, y[active], theta[active], delta[active], free[active], damping[active])
            loss = huber(y[active] - law.log_loss(new, x), delta[active, None]).sum(-1)
            gain = objective[active] - loss
            better = gain > 0
            taken = active[better]
            theta[taken], objective[taken] = new[better], loss[better]
            damping[active] = np.where(better, np.maximum(damping[active] / 8, 1e-12), damping[active] * 6)
            tiny = np.where(better, gain < TOLERANCE * loss + ZERO, damping[active] > 1e10)
            small[active] = np.where(tiny, small[active] + 1, 0)
            active = active[small[active] < 2]
    return theta, objective


def _step(law, x, y, theta, delta, free, damping):
    """The next parameters [M, p] by a damped Gauss-Newton step with Huber's weights, within the law's lower bounds."""
    r, J = y - law.log_loss(theta, x), law.jacobian(theta, x)
    weights = np.minimum(1, delta[:, None] / np.abs(r))
    weights = np.where(r == 0, 1, weights)
    gradient = np.einsum("mnp,mn->mp", J, weights * r)
    # What stands at its bound and would go beyond it stays.
    free = free & ~((theta <= law.lower) & (gradient < 0))
    J = J * free[:, None, :]
    H = np.einsum("mnp,mn,mnq->mpq", J, weights, J)
    scale = np.einsum("mpp->mp", H)
    floor = 1e-12 * scale.max(-1, keepdims=True) + 1e-300
    H = H + np.eye(theta.shape[1]) * np.where(free, damping[:, None] * np.maximum(scale, floor) + floor, 1)[:, None, :]
    step = np.linalg.solve(H, (gradient * free)[..., None])[..., 0]
    return np.maximum(theta + np.where(free, step, 0), law.lower)


def fit_many(law: Law, x: np.ndarray, y: np.ndarray, delta):
    """Parameters [T, p] and objectives [T], the best of many starts for each table of y [T, N]; `delta` [T] or one."""
    starts = law.starts(x, y)
    T, S, p = starts.shape
    each = lambda a: np.repeat(np.broadcast_to(a, (T,)), S)
    theta, objective = solve(law, x, np.repeat(y, S, axis=0), starts.reshape(T * S, p), each(delta))
    best = np.argmin(objective.reshape(T, S), axis=1)
    at = np.arange(T) * S + best
    return theta[at], objective[at]
