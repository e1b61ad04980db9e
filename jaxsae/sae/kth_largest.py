"""The k-th largest of many numbers that lie on many devices, found by counting: only counts move.

Positive floats are in the order of their bits, read as integers: the bits of the threshold are set one by one, the
highest first, wherever enough numbers are still at least so large.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax


def kth_largest(at_least: Callable, like, enough=True):
    """The k-th largest value per element of `like` (0 if fewer than k are positive), by bisecting the float's bits.

    `at_least(t)` says for each t, of the shape and dtype of `like`, whether at least k numbers are t or more. With
    `enough` false the result is 0 and nothing is counted.
    """
    integer = jnp.int32 if like.dtype.itemsize == 4 else jnp.int64
    bits = 8 * like.dtype.itemsize - 1

    def set_bit(step, pattern):
        higher = pattern | (jnp.ones_like(pattern) << (bits - 1 - step).astype(integer))
        # Patterns of NaN are at most nothing, so they are not taken.
        return jnp.where(at_least(lax.bitcast_convert_type(higher, like.dtype)), higher, pattern)

    pattern = lax.fori_loop(0, jnp.where(enough, bits, 0), set_bit, jnp.zeros_like(like, integer))
    return lax.bitcast_convert_type(pattern, like.dtype)
