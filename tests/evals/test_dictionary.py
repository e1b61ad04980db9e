"""Cosines, matchings and meta-structure of dictionaries against NumPy, SciPy and planted structure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxsae
from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals import EvaluationConfigs, dictionary, matching, measure, meta_structure
from jaxsae.evals.meta_structure import Training
from jaxsae.interop import native
from jaxsae.sae.types import Spec
from tests.evals.subjects import MESHES, on_files, random_sae

FREE = Spec("relu", 1, "none", "free", False)


def unit(W):
    return W / np.linalg.norm(W, axis=1, keepdims=True)


def random_rows(rows, d=6, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(rows, d)))


@pytest.mark.parametrize("shapes", [(20, 20), (13, 20), (20, 13)], ids=str)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_all_pairs_are_matched_as_by_scipy(x64, mesh, shapes):
    a, b = random_rows(shapes[0]), random_rows(shapes[1], seed=1)
    rows, columns = linear_sum_assignment(-(a @ b.T))
    with jax.set_mesh(make_mesh(*mesh)):
        have = matching.match(a, b)
    np.testing.assert_array_equal(have[0], rows)
    np.testing.assert_array_equal(have[1], columns)
    np.testing.assert_allclose(have[2], (a @ b.T)[rows, columns], rtol=1e-12)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_near_pairs_alone_match_as_all_of_them(x64, mesh):
    """A permuted dictionary with noise, and latents that the other lacks: these stay alone."""
    b = random_rows(50, 16)
    order = np.random.default_rng(1).permutation(50)[:37]
    a = unit(b[order] + 0.05 * np.random.default_rng(2).normal(size=(37, 16)))
    with jax.set_mesh(make_mesh(*mesh)):
        have = matching.match(a, b, all_pairs=0, nearest=4)
    np.testing.assert_array_equal(have[0], np.arange(37))
    np.testing.assert_array_equal(have[1], order)
    np.testing.assert_allclose(have[2], (a * b[order]).sum(1), rtol=1e-12)
    with jax.set_mesh(make_mesh(*mesh)):
        opposite = matching.match(a, -a[:1], all_pairs=0, nearest=1)
    assert len(opposite[0]) <= 1 and (opposite[2] > 0).all()


def test_near_pairs_have_the_largest_sum_that_they_can(x64):
    """Against SciPy on all pairs with the far ones at 0."""
    a, b = random_rows(30, 4), random_rows(25, 4, seed=5)
    cosines = a @ b.T
    near = (cosines >= np.sort(cosines, 1)[:, -3:-2]) | (cosines >= np.sort(cosines, 0)[-3:-2])
    allowed = np.maximum(np.where(near, cosines, 0), 0)
    rows, columns = linear_sum_assignment(-allowed)
    with jax.set_mesh(make_mesh(1, 1)):
        have = matching.match(a, b, all_pairs=0, nearest=3)
    np.testing.assert_allclose(have[2].sum(), allowed[rows, columns].sum(), rtol=1e-9)
    assert len(set(have[0])) == len(have[0]) and len(set(have[1])) == len(have[1])


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_cosines_equal_numpy(x64, mesh, tmp_path):
    sae, other = random_sae(6, 24, spec=FREE), random_sae(6, 10, seed=1, spec=FREE, dtype=jnp.float32)
    native.save(other, tmp_path / "other", {})
    config = EvaluationConfigs(dictionary=dictionary.Config(str(tmp_path / "other"), meta_steps=0))
    have = measure("dictionary", on_files(mesh, sae, np.ones((2, 5, 6))), config)
    W, E, V = (unit(np.asarray(w, np.float64)) for w in (sae.W_dec, sae.W_enc, other.W_dec))
    for name, rows in (("max_cosine", W), ("max_encoder_cosine", E)):
        G = rows @ rows.T
        np.fill_diagonal(G, -np.inf)
        np.testing.assert_allclose(have[name]["mean"], G.max(1).mean(), rtol=1e-9)
        np.testing.assert_allclose(have[name]["q0.75"], np.quantile(G.max(1), 0.75), rtol=1e-9)
        assert have[name]["histogram"] == np.histogram(G.max(1), np.linspace(-1, 1, 101))[0].tolist()
    np.testing.assert_allclose(have["encoder_decoder_cosine"]["mean"], (W * E).sum(1).mean(), rtol=1e-9)
    cross, matched = W @ V.T, have["matching"]
    rows, columns = linear_sum_assignment(-cross)
    np.testing.assert_allclose(matched["mean_max_cosine"], cross.max(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(matched["mean_max_cosine_of_other"], cross.max(0).mean(), rtol=1e-6)
    np.testing.assert_allclose(matched["hungarian"]["mean"], cross[rows, columns].mean(), rtol=1e-6)
    np.testing.assert_allclose(matched["same"], (cross[rows, columns] > 0.7).mean())
    assert matched["pairs"] == 10 and "meta_structure" not in have


def planted(n=256, parts=8, d=24, seed=0):
    """Rows that are each the sum of two of `parts` directions."""
    rng = np.random.default_rng(seed)
    basis = unit(rng.normal(size=(parts, d)))
    pairs = np.stack([rng.choice(parts, 2, replace=False) for _ in range(n)])
    return unit(basis[pairs].sum(1) + 0.02 * rng.normal(size=(n, d))).astype("f")


def test_shared_directions_are_explained_and_random_rows_are_not():
    rows = planted(parts=32)
    training = Training(k=2, steps=300, lr=5e-3)
    with jax.set_mesh(make_mesh(1, 1)):
        own = meta_structure.explained(jnp.asarray(rows), 64, training)
        noise = meta_structure.random_rows(jnp.asarray(rows), 3)
        random = meta_structure.explained(noise, 64, training)
    assert own > random + 0.15
    noise = np.asarray(noise)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.cov(noise.T), np.cov(rows.T), atol=0.02)


def test_the_share_is_that_of_the_trained_autoencoder(x64):
    """At no steps it is m of the rows themselves, of which each row takes its k nearest in the units of the encoder."""
    rows = np.asarray(planted(40, 6, 5), np.float64)
    with jax.set_mesh(make_mesh(1, 1)):
        sae, _ = meta_structure._start(jnp.asarray(rows), jax.random.key(0), 10, Training(k=1))
        have = float(meta_structure._share(sae, jnp.asarray(rows)))
    W, mean = np.asarray(sae.W_dec), rows.mean(0)
    assert all((np.abs(rows - w).sum(1) < 1e-12).any() for w in W) and len(np.unique(W, axis=0)) == 10
    z = (rows - mean) @ W.T
    best = z.argmax(1)
    xhat = mean + np.maximum(z.max(1), 0)[:, None] * W[best]
    np.testing.assert_allclose(have, 1 - ((rows - xhat) ** 2).sum() / ((rows - mean) ** 2).sum(), rtol=1e-9)


def test_meta_structure_does_not_depend_on_the_mesh(x64):
    rows, training = jnp.asarray(planted(42, 6, 5), jnp.float64), Training(k=2, steps=5)
    have = []
    for shape in MESHES:
        with jax.set_mesh(make_mesh(*shape)):
            have.append(meta_structure.explained(rows, 12, training))
            assert meta_structure.latents_of(42) == {(1, 1): 11, (2, 4): 12}[shape]
    np.testing.assert_allclose(have[0], have[1], rtol=1e-9)


def test_the_whole_evaluation_and_its_picture(tmp_path):
    sae = random_sae(6, 24, spec=FREE, dtype=jnp.float32)
    config = EvaluationConfigs(dictionary=dictionary.Config(meta_steps=3))
    have = measure("dictionary", on_files((1, 1), sae, np.ones((2, 5, 6), "f")), config)
    assert have["meta_structure"]["latents"] == 6 and have["tokens"] == 0 and "matching" not in have
    for number, result in enumerate((have, {name: value for name, value in have.items() if name != "meta_structure"})):
        dictionary.figure(result, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_bad_flags_are_refused(tmp_path):
    native.save(random_sae(4, 8, dtype=jnp.float32), tmp_path / "other", {})
    subject = on_files((1, 1), random_sae(6, dtype=jnp.float32), np.ones((2, 5, 6), "f"))
    with pytest.raises(jaxsae.BadInput, match=r"--dictionary.other .* has width 4, and this autoencoder 6"):
        measure("dictionary", subject, EvaluationConfigs(dictionary=dictionary.Config(str(tmp_path / "other"))))
    for bad in ({"meta_steps": -1}, {"meta_k": 0}):
        with pytest.raises(jaxsae.BadInput, match=r"--dictionary.meta"):
            dictionary.Config(**bad)
