"""Nearest directions and alive latents against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm import tiny

import jaxsae
from jaxsae.evals import geometry
from jaxsae.sae.struct import Spec
from sae import dense

HOOK = "blocks.1.hook_resid_pre"


def unit(rows, d=6, seed=0):
    W = np.random.default_rng(seed).normal(size=(rows, d))
    return W / np.linalg.norm(W, axis=1, keepdims=True)


@pytest.mark.parametrize("rows", [1, 40, 41, geometry.BLOCK + 3])
def test_nearest_equals_numpy(x64, rows):
    a, b = unit(rows), unit(17, seed=1)
    np.testing.assert_allclose(geometry.nearest(a, b), (a @ b.T).max(1), rtol=1e-12)
    np.testing.assert_allclose(geometry.nearest(b, a), (b @ a.T).max(1), rtol=1e-12)
    G = a @ a.T
    np.fill_diagonal(G, -np.inf)
    np.testing.assert_allclose(geometry.nearest_other(a), G.max(1), rtol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 20, 64])
def test_blocks_do_not_matter(x64, monkeypatch, block):
    # Of a shape of its own, so that no compiled function of another block serves it.
    a = unit(20 + block)
    G = a @ a.T
    np.fill_diagonal(G, -np.inf)
    monkeypatch.setattr(geometry, "BLOCK", block)
    np.testing.assert_allclose(geometry.nearest_other(a), G.max(1), rtol=1e-12)


def test_cosines_are_signed_and_a_copy_is_another():
    a = np.eye(3, dtype="f")
    np.testing.assert_array_equal(geometry.nearest(a, -a), [0, 0, 0])
    np.testing.assert_array_equal(geometry.nearest(a[:1], -a[:1]), [-1])
    np.testing.assert_array_equal(geometry.nearest_other(np.stack([a[0], a[0], -a[0]])), [1, 1, -1])


def test_directions_are_unit_rows_of_alive_latents(x64):
    sae = dense.random_sae(jax.random.key(0), 9, 4, Spec("relu", 1, "none", "normalised", False), jnp.float64)
    sae = sae.replace(W_dec=jnp.asarray(5 * np.random.default_rng(0).normal(size=(9, 4))))
    W = np.asarray(sae.W_dec) / np.linalg.norm(sae.W_dec, axis=1, keepdims=True)
    np.testing.assert_allclose(geometry.directions(sae), W, rtol=1e-12)
    np.testing.assert_allclose(geometry.directions(sae, np.array([7, 2])), W[[7, 2]], rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "topk", "batch_topk"])
def test_frequencies_equal_a_dense_count(activation):
    lm, tokens, n = tiny.model(), tiny.random_tokens(7, 5), 64
    sae = dense.random_sae(jax.random.key(0), n, tiny.WIDTH, Spec(activation, 3, "none", "free", False), jnp.float32)
    # Some latents never fire.
    sae = sae.replace(b_enc=sae.b_enc.at[::5].set(-1e6))
    if activation == "batch_topk":
        sae = sae.replace(extra={"threshold": jnp.full(n, 0.5)})
    z = np.asarray(jaxsae.dense(jaxsae.encode(sae, lm.prefix(tokens, HOOK)), n)).reshape(-1, n)
    have = geometry.frequencies(lm, sae, HOOK, tokens, batch=3)
    np.testing.assert_allclose(have, (z != 0).mean(0), rtol=1e-12)
    np.testing.assert_array_equal(geometry.alive(have), np.flatnonzero((z != 0).any(0)))
    assert 0 < len(geometry.alive(have)) < n and not (geometry.alive(have) % 5 == 0).any()
