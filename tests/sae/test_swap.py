"""TopK(k') and JumpReLU(theta) at test time, against dense code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.errors import BadInput
from jaxsae.sae.swap import with_threshold, with_topk
from jaxsae.sae.types import Spec
from tests.sae import dense

n, d = 64, 12


@pytest.fixture
def problem():
    sae = dense.random_sae(jax.random.key(0), n, d, Spec("topk", 5, "none", "unit_norm", True), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (32, d))
    return sae, x, (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc


@pytest.mark.parametrize("k", [1, 5, 17, n])
def test_topk(problem, k):
    sae, x, z = problem
    want = np.where(dense.top_mask(z, k), np.maximum(z, 0), 0)
    np.testing.assert_allclose(jaxsae.dense(jaxsae.encode(with_topk(sae, k), x), n), want, atol=1e-5)


@pytest.mark.parametrize("each", [False, True], ids=["one", "one for each"])
def test_threshold(problem, each):
    sae, x, z = problem
    theta = jnp.linspace(0.2, 2, n) if each else 0.7
    want = np.where(z > theta, z, 0)
    np.testing.assert_allclose(jaxsae.dense(jaxsae.encode(with_threshold(sae, theta), x), n), want, atol=1e-5)


def test_bad_input(problem):
    sae = problem[0]
    for swap, said in (
        (lambda: with_topk(sae, 65), "64"),
        (lambda: with_threshold(sae, 0.0), "positive"),
        (lambda: with_topk(sae.replace(spec=sae.spec.replace(activation="gated")), 3), "gated"),
    ):
        with pytest.raises(BadInput, match=said):
            swap()
