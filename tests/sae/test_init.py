"""Initial weights: the paper's four bullets and the numbers of the specification."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.distributed.mesh import make_mesh
from jaxsae.flags import NoFlags
from jaxsae.sae.calibrate import reconstruct_replicated
from jaxsae.sae.init import directions, geometric_median, initialise, mse_scale
from jaxsae.sae.types import Spec
from tests.sae import dense


def reconstruct(sae, x):
    return dense.reconstruct(sae, dense.code(sae, x))


@pytest.mark.parametrize("n, k, norm", [(2048, 8, 0.186), (2048, 32, 0.333), (2048, 128, 0.611)])
def test_norm_before_scaling_is_the_published_one(n, k, norm):
    """Rows of norm 1 / sqrt(3), as torch's default has them, reconstruct unit vectors with this norm at d = 768."""
    seen = []

    def spy(sae, x):
        seen.append(jnp.linalg.norm(reconstruct(sae, x) - sae.b_dec, axis=1).mean() / 3**0.5)
        return reconstruct(sae, x)

    initialise(jax.random.key(0), Spec("topk", k, "none", "unit_norm", True), n, jnp.zeros(768), NoFlags(), spy)
    assert float(seen[0]) == pytest.approx(norm, rel=0.03)


def test_encoder_is_parallel_and_norms_match():
    b_dec = jnp.linspace(-1, 1, 64)
    sae = initialise(jax.random.key(0), Spec("topk", 16, "none", "unit_norm", True), 512, b_dec, NoFlags(), reconstruct)
    np.testing.assert_allclose(jnp.linalg.norm(sae.W_dec, axis=1), 1, rtol=1e-5)
    cosine = (sae.W_enc * sae.W_dec).sum(1) / jnp.linalg.norm(sae.W_enc, axis=1)
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)
    assert (sae.b_enc == 0).all() and (sae.b_dec == b_dec).all()
    x = directions(jax.random.key(7), 512, 64) + b_dec
    norm = jnp.linalg.norm(reconstruct(sae, x) - b_dec, axis=1).mean()
    assert float(norm) == pytest.approx(1, abs=0.03)


def test_the_same_on_every_mesh():
    def make(mesh):
        with jax.set_mesh(make_mesh(*mesh)):
            spec = Spec("topk", 4, "none", "unit_norm", True)
            run = partial(initialise, jax.random.key(0), spec, 64, sharding=jax.P("latent", None))
            return jax.device_get(jax.jit(lambda b: run(b, NoFlags(), reconstruct_replicated))(jnp.ones(16)))

    a, b = make((1, 1)), make((2, 4))
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-6), a, b)


def test_geometric_median_minimises_the_sum_of_distances(x64):
    from scipy.optimize import minimize

    x = np.random.default_rng(0).standard_t(2, (50, 3))
    distances = lambda m: np.linalg.norm(x - m, axis=1).sum()
    want = minimize(distances, np.median(x, 0), options={"gtol": 1e-10}).x
    np.testing.assert_allclose(geometric_median(jnp.asarray(x), 1000, 1e-12), want, atol=1e-6)
    # A median that is one of the points, and points that are all the same.
    line = jnp.asarray([[0.0], [1.0], [10.0]])
    np.testing.assert_allclose(geometric_median(line, 10_000, 1e-9), [1.0], atol=1e-3)
    np.testing.assert_allclose(geometric_median(jnp.ones((4, 2))), [1.0, 1.0])


def test_mse_scale_makes_predicting_the_mean_cost_one():
    x = np.random.default_rng(0).normal(2, 3, (100, 5))
    assert float(mse_scale(jnp.asarray(x)) * ((x - x.mean(0)) ** 2).mean()) == pytest.approx(1)
