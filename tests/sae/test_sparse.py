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
        sparse.decode(ours["W"], ours["v"], ours["i"], k), np.einsum("bk,bkd->bd", v, W[i]), atol=1e-14
    )
    np.testing.assert_allclose(
        sparse.gather_dot(ours["W"], ours["i"], ours["g"], k), np.einsum("bkd,bd->bk", W[i], g), atol=1e-14
    )
    want = np.zeros_like(W)
    np.add.at(want, i, v[..., None] * g[:, None])
    np.testing.assert_allclose(sparse.scatter_outer(*(ours[a] for a in "Wvig"), k), want, atol=1e-14)
    counts = np.zeros(n)
    np.add.at(counts, i, v)
    np.testing.assert_allclose(sparse.scatter_add(problem["b"], ours["v"], ours["i"]), counts, atol=1e-14)


PLAIN = {
    "decode": lambda p: (
        lambda W, v: sparse.decode(W, v, p["i"], k),
        lambda W, v: jnp.einsum("bk,bkd->bd", v, W[p["i"]]),
    ),
    "preactivations": lambda p: (
        lambda W, b, c, x: sparse.preactivations(W, b, c, p["i"], x, k),
        lambda W, b, c, x: jnp.einsum("bkd,bd->bk", W[p["i"]], x - c) + b[p["i"]],
    ),
}
ARGUMENTS = {"decode": "W v", "preactivations": "W b b_dec g"}


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


def test_slots_after_the_last_in_use_are_left_alone(problem):
    W, v, g, i = (problem[a] for a in "Wvgi")
    cut = jnp.where(jnp.arange(k) < 2, v, 0)
    np.testing.assert_allclose(sparse.decode(W, v, i, 2), sparse.decode(W, cut, i, k), atol=1e-14)
    np.testing.assert_allclose(sparse.scatter_outer(W, v, i, g, 2), sparse.scatter_outer(W, cut, i, g, k), atol=1e-14)
    picked = sparse.gather_dot(W, i, g, 2)
    np.testing.assert_allclose(picked[:, :2], sparse.gather_dot(W, i, g, k)[:, :2], atol=1e-14)
    assert (picked[:, 2:] == 0).all()


def test_known_preactivations_have_the_same_gradient(problem):
    W, v, g, b, b_dec, i = (problem[a] for a in ("W", "v", "g", "b", "b_dec", "i"))
    known = sparse.preactivations(W, b, b_dec, i, g, k)
    run = lambda *given: jax.vjp(lambda W, b, c: sparse.preactivations(W, b, c, i, g, k, *given), W, b, b_dec)
    (value, back), (again, back_again) = run(), run(known)
    np.testing.assert_array_equal(value, again)
    jax.tree.map(np.testing.assert_array_equal, back(v), back_again(v))
