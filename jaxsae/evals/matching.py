"""Pairs of the latents of two dictionaries, one to one. n and m unit rows, d width."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.lm.parallel import on_contexts
from jaxsae.precision import matmul
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.select import Selection, largest

# Cosines of all pairs exist at once up to so many; of larger dictionaries, those of the nearest rows only.
ALL_PAIRS = 1 << 25
NEAREST = 32
# Bytes of cosines that exist at once on a device where nearest rows are found.
MEMORY = 1 << 28


def match(a, b, all_pairs: int = ALL_PAIRS, nearest: int = NEAREST):
    """(rows of a, rows of b, their cosines): pairs with the largest summed cosine, each row in one pair at most.

    Unit rows a [n, d] and b [m, d], on every device of the mesh that is set. Of at most `all_pairs` pairs this is the
    Hungarian algorithm's min(n, m) pairs. Of more, only pairs count of which one is among the `nearest` rows of the
    other, and rows may stay alone.
    """
    from scipy.optimize import linear_sum_assignment

    if len(a) * len(b) <= all_pairs:
        cosines = np.asarray(_cosines(a, b), np.float64)
        rows, columns = linear_sum_assignment(cosines, maximize=True)
        return rows, columns, cosines[rows, columns]
    return _match_nearest(a, b, nearest)


def _match_nearest(a, b, nearest: int):
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, m = len(a), len(b)
    (to_b, value_b), (to_a, value_a) = nearest_rows(a, b, min(nearest, m)), nearest_rows(b, a, min(nearest, n))
    rows = np.concatenate([np.repeat(np.arange(n), to_b.shape[1]), to_a.ravel()])
    columns = np.concatenate([to_b.ravel(), np.repeat(np.arange(m), to_a.shape[1])])
    cosines = np.concatenate([value_b.ravel(), value_a.ravel()]).astype(np.float64)
    _, once = np.unique(rows * m + columns, return_index=True)
    rows, columns, cosines = rows[once], columns[once], cosines[once]
    # Each row of a has a partner of its own with cosine 0, so that there always is a matching. Weights must not be 0.
    costs = np.concatenate([2 - cosines, np.full(n, 2.0)])
    partners = np.concatenate([columns, m + np.arange(n)])
    graph = csr_array((costs, (np.concatenate([rows, np.arange(n)]), partners)), (n, m + n))
    of_a, of_b = min_weight_full_bipartite_matching(graph)
    pairs = of_b < m
    of_a, of_b = of_a[pairs], of_b[pairs]
    return of_a, of_b, 2 - np.asarray(graph[of_a, of_b]).ravel()


def nearest_rows(a, b, count: int):
    """(rows of b, cosines) of the `count` rows of b that are nearest to each row of a, [n, count] each."""
    values, indices = jax.device_get(_largest(a, b, count))
    return indices[: len(a)], values[: len(a)]


@partial(jax.jit, static_argnames="count")
def _largest(a, b, count: int):
    size = jax.sharding.get_abstract_mesh().size
    padded = jnp.pad(a, ((0, -len(a) % size), (0, 0)))
    local = lambda b, a: largest(b, jnp.zeros_like(b[:, 0]), a, count, Selection(memory=MEMORY))
    return jax.tree.map(lambda x: jax.reshard(x, REPLICATED), on_contexts(local, b, padded))


@jax.jit
def _cosines(a, b):
    return matmul(a, b.T)
