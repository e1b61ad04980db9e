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


def centers(x, kept) -> dict:
    """{view: mean [d]} of the activations x [b, T, d] of the tokens in `kept` [b, T]: points to measure spreads from.

    0 if there are none.
    """
    sums, counts = jnp.where(kept[..., None], x, 0).sum(0), kept.sum(0)
    return {view: sums[at].sum(0) / jnp.maximum(counts[at].sum(), 1) for view, at in VIEWS.items()}


def squares(x, kept, center: dict):
    """({view: ||x - center||^2 [b, T]}, sum over contexts of x - center["all"] [T, d]), x [b, T, d]; 0 for the tokens
    that are not in `kept` [b, T].
    """
    spread = {view: jnp.where(kept, ((x - point) ** 2).sum(-1), 0) for view, point in center.items()}
    return spread, jnp.where(kept[..., None], x - center["all"], 0).sum(0)


def quotient(a, b):
    """a / b for b >= 0, and 0 where b is."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def similarities(xhat, x) -> dict:
    """Of reconstructions xhat [..., d] of x [..., d], [...] each: their cosine (0 if one is zero), ||xhat|| / ||x||,
    ||xhat||^2, and <xhat, x>.
    """
    square, of_x, product = (xhat * xhat).sum(-1), (x * x).sum(-1), (xhat * x).sum(-1)
    norm, of_x = jnp.sqrt(square), jnp.sqrt(of_x)
    return {
        "cosine": quotient(product, norm * of_x),
        "l2_ratio": quotient(norm, of_x),
        "square": square,
        "product": product,
    }


def spread_of(square, deviation, tokens):
    """Sum of ||x - E x||^2 over tokens, from their squared distances to a point (`square`, summed) and the sum of their
    differences from it (`deviation` [d]).
    """
    return square - deviation @ deviation / tokens


def nmse_by_position(error, square, deviation, counts) -> list[float | None]:
    """NMSE of each position, [T]: error, square and counts (of tokens) [T], deviation [T, d]; E x is the mean over all
    tokens. None for positions without tokens.
    """
    mean = deviation.sum(0) / max(counts.sum(), 1)
    return ratios(error, np.where(counts > 0, square - 2 * deviation @ mean + counts * (mean @ mean), 0))


def ratio(numerator: float, denominator: float) -> float | None:
    """A quotient of sums; None if there is nothing to divide by."""
    return float(numerator / denominator) if denominator else None


def ratios(numerators, denominators) -> list[float | None]:
    """`ratio` of each pair."""
    return [ratio(a, b) for a, b in zip(numerators, denominators, strict=True)]


def ratio_error(numerator, denominator, ratio: float | None) -> float | None:
    """The standard error of sum(numerator) / sum(denominator) over contexts [C], by linearisation.

    With tokens as denominator, that of a mean over tokens. None for fewer than two contexts, or without a ratio.
    """
    if len(numerator) < 2 or ratio is None:
        return None
    residual = numerator - ratio * denominator
    return float(np.sqrt(len(residual)) * residual.std(ddof=1) / abs(denominator.sum()))
