"""AuxK over several blocks of dead latents, against the dense reference in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.sae import auxk
from jaxsae.sae.layout import ALONE
from jaxsae.sae.struct import Spec
from sae import dense

B, d, n = 12, 6, 40


@pytest.fixture
def problem(x64):
    sae = dense.random_sae(jax.random.key(0), n, d, Spec("topk", 3, "none", "unit_norm", True), jnp.float64)
    x, e = jax.random.normal(jax.random.key(1), (2, B, d), jnp.float64)
    return sae, x, e


@pytest.mark.parametrize("rows", [1, 7, 16, 1024])
@pytest.mark.parametrize("count", [1, 5, 8, 23, n])
def test_blocks_do_not_show(problem, monkeypatch, rows, count):
    monkeypatch.setattr(auxk, "ROWS", rows)
    sae, x, e = problem
    dead = jnp.zeros(n, bool).at[jax.random.permutation(jax.random.key(count), n)[:count]].set(True)
    ours = jax.value_and_grad(lambda s: auxk.auxk_loss(s, x, e, dead, 8, ALONE))(sae)
    want = jax.value_and_grad(lambda s: dense.aux_loss(s, x, e, dead, 8))(sae)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), ours, want)


def test_nothing_dead_and_constant_error_are_zero(problem):
    sae, x, e = problem
    loss = lambda s, e, dead: auxk.auxk_loss(s, x, e, dead, 8, ALONE)
    for error, dead in ((e, jnp.zeros(n, bool)), (jnp.ones_like(e), jnp.ones(n, bool))):
        value, grads = jax.value_and_grad(loss)(sae, error, dead)
        assert value == 0
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(loss)(sae, e, jnp.zeros(n, bool))))


def test_the_error_gets_no_gradient(problem):
    sae, x, e = problem
    grads = jax.grad(lambda x, e: auxk.auxk_loss(sae, x, e, jnp.ones(n, bool), 8, ALONE), (0, 1))(x, e)
    assert all((g == 0).all() for g in grads)


def test_default_width():
    assert [auxk.default_k_aux(d) for d in (64, 128, 192, 768, 1024)] == [32, 64, 128, 512, 512]
