"""How well an autoencoder reconstructs: NMSE and L0, whole and by position. b contexts, T positions, d width.

NMSE = E||x - xhat||^2 / E||x - E x||^2 in normalised units: sums are accumulated over all tokens, then divided once
(Gao et al. 2024, sec. 3.1).
"""

import jax.numpy as jnp
import numpy as np


def sums(x, xhat, l0):
    """What one batch adds, by position: x, xhat [b, T, d] and l0 [b, T] -> arrays [T] and [T, d]."""
    return {
        "error": ((x - xhat) ** 2).sum((0, 2)),
        "square": (x**2).sum((0, 2)),
        "x": x.sum(0),
        "l0": l0.sum(0),
        "tokens": jnp.full(x.shape[1], len(x)),
    }


def metrics(total: dict[str, np.ndarray], mse_scale: float) -> dict[str, float]:
    """Loss (squared error as training scales it), NMSE and L0 from float64 sums over the positions in `total`."""
    tokens, error = total["tokens"].sum(), total["error"].sum()
    return {
        "loss": float(mse_scale * error / (tokens * total["x"].shape[-1])),
        "nmse": float(error / _spread(total).sum()),
        "l0": float(total["l0"].sum() / tokens),
    }


def nmse_by_position(total: dict[str, np.ndarray]) -> list[float]:
    """NMSE of each position, [T]; the mean that it is held against is that of all positions."""
    return [float(v) for v in total["error"] / _spread(total)]


def _spread(total):
    """sum over tokens of ||x - E x||^2, by position: E x over all positions that `total` holds."""
    mean = total["x"].sum(0) / total["tokens"].sum()
    return total["square"] - 2 * total["x"] @ mean + total["tokens"] * (mean @ mean)
