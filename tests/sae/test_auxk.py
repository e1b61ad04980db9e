"""AuxK over several blocks of dead latents, against the dense reference in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.sae import auxk
from jaxsae.sae.layout import UNSHARDED
from jaxsae.sae.types import Spec
from tests.sae import dense

B, d, n = 12, 6, 40


@pytest.fixture
def problem(x64):
    sae = dense.random_sae(jax.random.key(0), n, d, Spec("topk", 3, "none", "unit_norm", True), jnp.float64)
    x, e = jax.random.normal(jax.random.key(1), (2, B, d), jnp.float64)
    return sae, x, e


def loss(sae, x, e, dead, memory=1 << 20):
    ehat, _ = auxk.dead_code(sae, x, dead, 8, UNSHARDED, memory)
    return auxk.auxk_loss(e, ehat)


@pytest.mark.parametrize("kept", [1, 8])
@pytest.mark.parametrize("rows", [3, 512])
def test_blocks_do_not_show(problem, monkeypatch, rows, kept):
    monkeypatch.setattr(auxk, "ROWS", rows)
    monkeypatch.setattr(auxk, "KEPT", kept)
    sae, x, e = problem
    run = jax.jit(jax.value_and_grad(lambda s, dead: loss(s, x, e, dead)))
    for count in (1, 8, 23, n):
        dead = jnp.zeros(n, bool).at[jax.random.permutation(jax.random.key(count), n)[:count]].set(True)
        want = jax.value_and_grad(lambda s, dead=dead: dense.aux_loss(s, x, e, dead, 8))(sae)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), run(sae, dead), want)


def test_a_constant_error_is_zero_and_nothing_dead_has_no_gradient(problem):
    sae, x, e = problem
    value, grads = jax.value_and_grad(loss)(sae, x, jnp.ones_like(e), jnp.ones(n, bool))
    assert value == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(loss)(sae, x, e, jnp.zeros(n, bool))))


def test_the_error_gets_no_gradient(problem):
    sae, x, e = problem
    grads = jax.grad(lambda x, e: loss(sae, x, e, jnp.ones(n, bool)), (0, 1))(x, e)
    assert all((g == 0).all() for g in grads)


def test_default_width():
    assert [auxk.default_k_aux(d) for d in (64, 128, 192, 768, 1024)] == [32, 64, 128, 512, 512]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=str)
def test_the_threshold_is_the_kth_largest(x64, dtype):
    sae = dense.random_sae(jax.random.key(3), n, d, Spec("topk", 3, "none", "unit_norm", True), dtype)
    x = jax.random.normal(jax.random.key(4), (B, d), dtype)
    weights, rows = (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), 16
    z = x @ sae.W_enc.T + sae.b_enc
    padded = jnp.pad(z, ((0, 0), (0, 48 - n)), constant_values=-jnp.inf).reshape(B, 3, rows).swapaxes(0, 1)
    blocks = auxk.Blocks(jnp.pad(jnp.arange(n), (0, 48 - n), constant_values=n), 3, padded)
    for k in (1, 8, n - 1):
        least = auxk._threshold(weights, x, blocks, k, jnp.asarray(True), UNSHARDED)
        np.testing.assert_array_equal(least[:, 0], jnp.maximum(jnp.sort(z, 1)[:, n - k], 0))


def test_what_uses_the_weights_afterwards_adds_to_the_same_gradient(problem):
    sae, x, e = problem
    dead = jnp.arange(n) % 3 == 0

    def both(sae, chained):
        ehat, after = auxk.dead_code(sae, x, dead, 8, UNSHARDED, 1 << 20)
        after = after if chained else sae
        return auxk.auxk_loss(e, ehat) + (after.W_enc**2).sum() + (after.W_dec**3).sum()

    chained, plain = (jax.grad(lambda s, c=c: both(s, c))(sae) for c in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), chained, plain)
