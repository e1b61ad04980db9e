"""The trilinear form's three products and their gradients, against NumPy and against AD of plain code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.sae import sparse

B, k, d, n = 5, 3, 4, 7


@pytest.fixture
def problem(x64):
    keys = jax.random.split(jax.random.key(0), 6)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape, jnp.float64)
    # Repeated indices, within a row and across rows, must add up.
    i = jax.random.randint(keys[5], (B, k), 0, n).at[0].set(2)
    shapes = {"W": (n, d), "v": (B, k), "g": (B, d), "b": (n,), "b_dec": (d,)}
    return {"i": i} | {name: normal(j, *shape) for j, (name, shape) in enumerate(shapes.items())}


def test_products_equal_numpy(problem):
    W, v, g, i = (np.asarray(problem[a]) for a in "Wvgi")
    ours = {a: problem[a] for a in "Wvgi"}
    np.testing.assert_allclose(
        sparse.decode(ours["W"], ours["v"], ours["i"]), np.einsum("bk,bkd->bd", v, W[i]), atol=1e-14
    )
    np.testing.assert_allclose(
        sparse.pick(ours["W"], ours["i"], ours["g"]), np.einsum("bkd,bd->bk", W[i], g), atol=1e-14
    )
    want = np.zeros_like(W)
    np.add.at(want, i, v[..., None] * g[:, None])
    np.testing.assert_allclose(sparse.spread(*(ours[a] for a in "Wvig")), want, atol=1e-14)
    counts = np.zeros(n)
    np.add.at(counts, i, v)
    np.testing.assert_allclose(sparse.tally(problem["b"], ours["v"], ours["i"]), counts, atol=1e-14)


PLAIN = {
    "decode": lambda p: (lambda W, v: sparse.decode(W, v, p["i"]), lambda W, v: jnp.einsum("bk,bkd->bd", v, W[p["i"]])),
    "pick": lambda p: (lambda W, g: sparse.pick(W, p["i"], g), lambda W, g: jnp.einsum("bkd,bd->bk", W[p["i"]], g)),
    "preactivations": lambda p: (
        lambda W, b, c, x: sparse.preactivations(W, b, c, p["i"], x),
        lambda W, b, c, x: jnp.einsum("bkd,bd->bk", W[p["i"]], x - c) + b[p["i"]],
    ),
}
ARGUMENTS = {"decode": "W v", "pick": "W g", "preactivations": "W b b_dec g"}


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_equal_ad(problem, name):
    ours, plain = PLAIN[name](problem)
    args = [problem[a] for a in ARGUMENTS[name].split()]
    value, back = jax.vjp(ours, *args)
    want, plain_back = jax.vjp(plain, *args)
    np.testing.assert_allclose(value, want, atol=1e-14)
    cotangent = jax.random.normal(jax.random.key(9), value.shape, value.dtype)
    for a, b in zip(back(cotangent), plain_back(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
