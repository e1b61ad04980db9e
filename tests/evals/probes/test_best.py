"""The best latent and the latents that differ most, against NumPy, on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals import probes
from jaxsae.evals.probes.best import best_channel, best_latent, top_latents
from jaxsae.evals.probes.best import preactivations as computed
from jaxsae.sae.select import EXACT
from jaxsae.sae.types import Spec
from tests.evals.subjects import MESHES, TOPK, placed, random_sae
from tests.sae import dense

D, N = 12, 150


def examples(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(N, D))
    return x, (x[:, 2] + x[:, 5] + random.normal(size=N) > 0).astype(int)


def preactivations(sae, x):
    if sae.spec.normalise == "unit_norm":
        x = x - x.mean(1, keepdims=True)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (x - np.asarray(sae.input_bias())) @ np.asarray(sae.W_enc).T + np.asarray(sae.b_enc)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("n, at_once", [(64, 1 << 19), (64, 256 * 7), (60, 256 * 11)])
def test_the_best_latent_is_that_of_all_at_once(x64, mesh, n, at_once):
    sae, (x, y) = random_sae(D, n), examples()
    fitted = jax.device_get(probes.fit(preactivations(sae, x), y))
    grid = make_mesh(*mesh)
    with jax.set_mesh(grid):
        best = best_latent(placed(grid, sae), x, y, at_once)
        z = computed(placed(grid, sae), x, np.array([best.latent, 3]))
    assert best.latent == fitted.loss.argmin()
    for name in ("w", "b", "loss"):
        np.testing.assert_allclose(getattr(best, name), getattr(fitted, name)[best.latent], rtol=1e-9)
    np.testing.assert_allclose(z, preactivations(sae, x)[:, [best.latent, 3]], rtol=1e-9)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_of_equal_latents_the_first_is_kept(x64, mesh):
    sae, (x, y) = random_sae(D, 64, spec=Spec("relu", 4, "none", "free", False)), examples()
    best = int(probes.fit(preactivations(sae, x), y).loss.argmin())
    copies = jnp.array([9, 33, 63, 5])
    sae = sae.replace(W_enc=sae.W_enc.at[copies].set(sae.W_enc[best]), b_enc=sae.b_enc.at[copies].set(sae.b_enc[best]))
    grid = make_mesh(*mesh)
    with jax.set_mesh(grid):
        assert best_latent(placed(grid, sae), x, y, 256 * 7).latent == min(5, best)


def test_the_best_channel_is_that_of_the_activation_itself(x64):
    x, y = examples()
    assert best_channel(x, y).latent in (2, 5)
    np.testing.assert_allclose(best_channel(x, y).loss, probes.fit(x, y).loss.min(), rtol=1e-9)


@pytest.mark.parametrize("spec", [TOPK, Spec("relu", 4, "none", "free", False)], ids=lambda spec: spec.activation)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_latents_are_ranked_as_sae_probes_ranks_them(x64, mesh, spec):
    sae, (x, y) = random_sae(D, 64, spec=spec), examples()
    z = preactivations(sae, x)
    values = np.maximum(z, 0)
    if spec is TOPK:
        values = np.where(dense.top_mask(jnp.asarray(z), spec.k), values, 0)
    scaled = values / (np.abs(values).sum(0) / ((values != 0).sum(0) + 1e-6) + 1e-6)
    difference = scaled[y == 1].mean(0) - scaled[y == 0].mean(0)
    grid = make_mesh(*mesh)
    with jax.set_mesh(grid):
        both, larger = (top_latents(placed(grid, sae), x, y, 5, EXACT, signed) for signed in (False, True))
    np.testing.assert_array_equal(both, np.argsort(-np.abs(difference), kind="stable")[:5])
    np.testing.assert_array_equal(larger, np.argsort(-difference, kind="stable")[:5])
