"""The sharded step against the dense reference, in float64, on five meshes; and what its compiled form contains."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MESHES

from jaxsae.mesh import make_mesh, shardings
from jaxsae.sae.layout import EVERYWHERE, LATENTS, TOKENS
from jaxsae.sae.struct import Spec, partition_specs
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.step import make_loss
from sae import dense

B, d, n, k, k_aux = 32, 12, 64, 5, 8
SPEC = Spec("topk", k, "none", "unit_norm", True)


def problem(dead_share, dtype=jnp.float64):
    sae = dense.random_sae(jax.random.key(0), n, d, SPEC, dtype)
    x = jax.random.normal(jax.random.key(1), (B, d), dtype)
    dead = jax.random.uniform(jax.random.key(2), (n,)) < dead_share
    return sae, x, dead


def sharded(mesh, sae, x, dead):
    put = lambda tree, specs: jax.device_put(tree, shardings(mesh, specs))
    return put(sae, partition_specs(sae)), put(x, TOKENS), put(dead, LATENTS)


def compiled_loss(mesh, sae, x, dead, with_auxk=True):
    loss = make_loss(SAEConfig(n, k, normalise="none"), TrainingConfig(), k_aux)
    grad = jax.value_and_grad(lambda p, x, dead: loss(p, (x, x), dead, 0.7, 1 / 32, with_auxk), has_aux=True)
    with jax.set_mesh(mesh):
        args = sharded(mesh, sae, x, dead)
        return jax.jit(grad).lower(*args).compile(), args


@pytest.mark.parametrize("dead_share", [0.0, 0.08, 0.9, 1.0])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_loss_and_gradients_equal_dense(x64, mesh, dead_share):
    sae, x, dead = problem(dead_share)
    run, args = compiled_loss(make_mesh(*mesh), sae, x, dead)
    (value, (metrics, fired)), grads = run(*args)
    want, want_grads = jax.value_and_grad(dense.loss)(sae, x, dead, 0.7, 1 / 32, k_aux)
    z = dense.code(sae, x)
    np.testing.assert_allclose(value, want, rtol=1e-12)
    np.testing.assert_array_equal(fired, (z > 0).sum(0))
    np.testing.assert_allclose(metrics["l0"], (z > 0).sum(1).mean(), rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), grads, want_grads)
