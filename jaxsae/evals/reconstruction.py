"""How well an autoencoder reconstructs: ratios of squared errors to squared spreads, from sums.

b contexts of a batch, C contexts in all, T positions, d width.

NMSE = E||x - xhat||^2 / E||x - E x||^2: sums are accumulated over all tokens, then divided once (Gao et al. 2024, sec.
3.1). E x is known after the last batch only, so spreads are measured from a fixed point near it (the mean of the first
batch) and corrected at the end, without the digits that sums of x^2 would lose to a mean far from zero.
"""

import jax.numpy as jnp
import numpy as np

# Positions that metrics are given for. GPT-2's stream is tens of times longer at position 0.
VIEWS = {"all": slice(None), "no_pos0": slice(1, None)}


def centers(x, mask) -> dict:
    """{view: mean [d]} of the activations x [b, T, d] of the contexts in `mask` [b]: points to measure spreads from."""
    sums = jnp.where(mask[:, None, None], x, 0).sum(0)
    count = mask.sum(dtype=x.dtype)
    return {view: sums[at].sum(0) / (count * len(sums[at])) for view, at in VIEWS.items() if len(sums[at])}


def squares(x, mask, center: dict):
    """({view: ||x - center||^2 [b, T]}, sum over the contexts in `mask` of x - center["all"] [T, d]), x [b, T, d]."""
    spread = {view: ((x - point) ** 2).sum(-1) for view, point in center.items()}
    return spread, jnp.where(mask[:, None, None], x - center["all"], 0).sum(0)


def spread_of(square, deviation, tokens):
    """Sum of ||x - E x||^2 over tokens, from their squared distances to a point (`square`, summed) and the sum of their
    differences from it (`deviation` [d]).
    """
    return square - deviation @ deviation / tokens


def nmse_by_position(error, square, deviation, contexts: int) -> list[float]:
    """NMSE of each position, [T]: error and square [T], deviation [T, d]; E x is the mean over all positions."""
    mean = deviation.sum(0) / (contexts * len(deviation))
    spread = square - 2 * deviation @ mean + contexts * (mean @ mean)
    return [float(value) for value in error / spread]


def ratio_error(numerator, denominator, ratio: float) -> float | None:
    """The standard error of sum(numerator) / sum(denominator) over contexts [C], by linearisation.

    None for fewer than two contexts.
    """
    if len(numerator) < 2:
        return None
    residual = numerator - ratio * denominator
    return float(np.sqrt(len(residual)) * residual.std(ddof=1) / denominator.sum())


def mean_error(values) -> float | None:
    """The standard error of the mean of values [C] of contexts; None for fewer than two."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
