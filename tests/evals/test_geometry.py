"""Nearest directions and alive latents against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals import EvaluationConfigs, geometry, measure
from jaxsae.interop import native
from jaxsae.sae.types import Spec
from tests.evals.subjects import MESHES, on_files, on_text, placed, random_sae, two_layers
from tests.lm import tiny


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


@pytest.mark.parametrize("mesh, block", [((1, 1), 1), ((2, 4), 7), ((1, 1), 64)], ids=str)
def test_blocks_and_meshes_do_not_matter(x64, mesh, block):
    a, b = unit(21), unit(10, seed=1)
    G = a @ a.T
    np.fill_diagonal(G, -np.inf)
    with jax.set_mesh(make_mesh(*mesh)):
        np.testing.assert_allclose(geometry.nearest_other(a, block), G.max(1), rtol=1e-12)
        np.testing.assert_allclose(geometry.nearest(a, b, block), (a @ b.T).max(1), rtol=1e-12)


def test_cosines_are_signed_and_a_copy_is_another():
    a = np.eye(3, dtype="f")
    np.testing.assert_array_equal(geometry.nearest(a, -a), [0, 0, 0])
    np.testing.assert_array_equal(geometry.nearest(a[:1], -a[:1]), [-1])
    np.testing.assert_array_equal(geometry.nearest_other(np.stack([a[0], a[0], -a[0]])), [1, 1, -1])


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_directions_are_unit_rows_of_alive_latents(x64, mesh):
    sae = random_sae(4, 8, spec=Spec("relu", 1, "none", "normalised", False))
    sae = sae.replace(W_dec=jnp.asarray(5 * np.random.default_rng(0).normal(size=(8, 4))))
    W, grid = np.asarray(sae.W_dec) / np.linalg.norm(sae.W_dec, axis=1, keepdims=True), make_mesh(*mesh)
    with jax.set_mesh(grid):
        sae = placed(grid, sae)
        np.testing.assert_allclose(geometry.directions(sae), W, rtol=1e-12)
        np.testing.assert_allclose(geometry.directions(sae, np.array([7, 2])), W[[7, 2]], rtol=1e-12)


@pytest.mark.parametrize("activation, mesh", [("relu", (2, 4)), ("topk", (1, 1)), ("batch_topk", (2, 4))], ids=str)
def test_alive_latents_and_their_neighbours_equal_numpy(activation, mesh, tmp_path):
    n, hook = 64, "blocks.0.hook_resid_post"
    sae = random_sae(tiny.WIDTH, n, spec=Spec(activation, 3, "none", "free", False), dtype=jnp.float32)
    # Some latents never fire.
    sae = sae.replace(b_enc=sae.b_enc.at[::5].set(-1e6))
    if activation == "batch_topk":
        sae = sae.replace(extra={"threshold": jnp.full(n, 0.5)})
    other = random_sae(tiny.WIDTH, 32, seed=3, dtype=jnp.float32)
    native.save(other, tmp_path / "other", {})
    lm = two_layers(jnp.float32)
    subject = on_text(mesh, sae, hook, 7, lm, positions=5)
    x = lm.prefix(subject.source.tokens, hook)
    z = np.asarray(jaxsae.dense(jaxsae.encode(sae, x), n)).reshape(-1, n)
    have = geometry.frequencies(subject)
    np.testing.assert_allclose(have, (z != 0).mean(0), rtol=1e-12)
    alive = geometry.alive(have)
    np.testing.assert_array_equal(alive, np.flatnonzero((z != 0).any(0)))
    assert 0 < len(alive) < n and not (alive % 5 == 0).any()
    result = measure("geometry", subject, EvaluationConfigs(geometry=geometry.Config(str(tmp_path / "other"))))
    unit = lambda W: W / np.linalg.norm(W, axis=1, keepdims=True)
    W = unit(np.asarray(sae.W_dec)[alive])
    G, cross = W @ W.T, W @ unit(np.asarray(other.W_dec)).T
    np.fill_diagonal(G, -np.inf)
    assert result["alive"] == len(alive) and result["alive_fraction"] == len(alive) / n
    for name, values in (("frequency", have[alive]), ("nearest_other", G.max(1)), ("nearest_in_other", cross.max(1))):
        np.testing.assert_allclose(result[name]["mean"], values.mean(), rtol=1e-5)
        np.testing.assert_allclose(result[name]["q0.25"], np.quantile(values, 0.25), rtol=1e-5)
    geometry.figure(result, tmp_path / "geometry.png")
    assert (tmp_path / "geometry.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_frequencies_are_of_the_tokens_that_training_read(mesh):
    """Padding, position 0 and a token are left out."""
    hook, sae, lm = "blocks.0.hook_resid_post", random_sae(tiny.WIDTH, dtype=jnp.float32), two_layers(jnp.float32)
    subject = on_text(mesh, sae, hook, 7, lm, positions=5)
    source, real = subject.source, np.arange(5) < np.array([5, 1, 3, 4, 5, 2, 5])[:, None]
    x = lm.prefix(source.tokens, hook)
    kept = real & (np.arange(5) > 0) & (source.tokens != source.tokens[0, 2])
    source.first, source.skip, source.tokens = 1, source.tokens[0, 2], np.where(real, source.tokens, -1)
    z = np.asarray(jaxsae.dense(jaxsae.encode(sae, x), sae.n))
    np.testing.assert_allclose(geometry.frequencies(subject), (z[kept] != 0).mean(0), rtol=1e-12)


def test_a_second_autoencoder_of_another_width_is_refused(tmp_path):
    native.save(random_sae(4, 8, dtype=jnp.float32), tmp_path / "other", {})
    subject = on_files((1, 1), random_sae(12, dtype=jnp.float32), np.ones((2, 5, 12), "f"))
    with pytest.raises(jaxsae.BadInput, match=r"--geometry.other .* has width 4, and this autoencoder 12"):
        measure("geometry", subject, EvaluationConfigs(geometry=geometry.Config(str(tmp_path / "other"))))
