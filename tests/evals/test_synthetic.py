"""Scores against a known truth: of autoencoders that are the truth, and against NumPy."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import jaxsae
from jaxsae.cli import main
from jaxsae.data.synthetic import SyntheticSource, World, truth_of
from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals import Subject, measure
from jaxsae.run.eval_config import TOKENS, EvalConfig
from jaxsae.sae.types import SAE, Spec
from tests.evals.subjects import MESHES, on_files, placed, random_sae

# Sparse and without noise, so that a linear encoder reads most features off.
WORLD = World(features=16, width=32, active=1.0, noise=0.0)
RELU = Spec("relu", 1, "none", "free", False)


def on_world(mesh, sae, world=WORLD, contexts=16) -> Subject:
    grid = make_mesh(*mesh)
    source = SyntheticSource(world, "held_out", 1)
    return Subject(placed(grid, sae), source, grid, contexts * source.rows, facts={"mse_scale": 1}, quiet=True)


def test_the_truth_itself_has_full_marks():
    """An encoder that inverts the directions, latents permuted, two dead ones added."""
    directions = truth_of(WORLD).directions
    inverse = np.linalg.pinv(directions).T
    order = np.random.default_rng(0).permutation(16)
    rows = lambda a: jnp.asarray(np.concatenate([a[order], np.zeros((2, 32), "f")]), jnp.float32)
    bias = jnp.asarray([-0.01] * 16 + [-1.0] * 2)
    sae = SAE(rows(inverse), bias, rows(directions), jnp.zeros(32), RELU)
    have = measure("synthetic", on_world((1, 1), sae))
    for name in ("mcc", "correlation", "precision", "recall", "f1", "uniqueness"):
        assert have[name] == pytest.approx(1, abs=2e-3), name
    # A bias of 0.01 of magnitudes around 1.
    assert have["shrinkage"] == pytest.approx(0.01, abs=1e-3) and have["dead_fraction"] == pytest.approx(2 / 18)
    half = measure("synthetic", on_world((1, 1), sae.replace(W_dec=sae.W_dec / 2)))
    assert half["shrinkage"] == pytest.approx(0.505, abs=2e-3) and half["mcc"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("n", [24, 8], ids=["more latents", "fewer latents than features"])
def test_scores_equal_numpy_on_every_mesh(n):
    world = replace(WORLD, noise=0.05, active=2.0)
    sae = random_sae(32, n, spec=Spec("topk", 3, "unit_norm", "free", True), dtype=jnp.float32)
    subject = on_world((1, 1), sae, world)
    with jax.set_mesh(subject.mesh):
        x, z = jax.device_get(subject.source.made(subject.source.host(0, 16)))
    x, z = x.reshape(-1, 32), z.reshape(-1, 16)
    scale = np.linalg.norm(x - x.mean(1, keepdims=True), axis=1)[:, None]
    norms = np.linalg.norm(sae.W_dec, axis=1)
    v = np.asarray(jaxsae.dense(jaxsae.encode(sae, x), n)) * scale * norms
    cosines = np.asarray(truth_of(world).directions) @ (np.asarray(sae.W_dec) / norms[:, None]).T
    features, pairs = linear_sum_assignment(-cosines)
    of_features = {name: np.zeros(16) for name in ("cosine", "correlation", "precision", "recall", "f1")}
    shrinkage = []
    for feature, latent in zip(features, pairs):
        real, own = z[:, feature], v[:, latent]
        both = ((real > 0) & (own > 0)).sum()
        of_features["cosine"][feature] = cosines[feature, latent]
        of_features["correlation"][feature] = np.corrcoef(real, own)[0, 1] if own.any() else 0
        of_features["precision"][feature] = both / max((own > 0).sum(), 1)
        of_features["recall"][feature] = both / (real > 0).sum()
        of_features["f1"][feature] = 2 * both / ((real > 0).sum() + (own > 0).sum())
        if both:
            at = (real > 0) & (own > 0)
            shrinkage.append(1 - own[at].sum() / real[at].sum())
    assert (z > 0).any(0).all()
    for mesh in MESHES:
        have = measure("synthetic", on_world(mesh, sae, world))
        np.testing.assert_allclose(have["mcc"], of_features["cosine"].mean(), rtol=1e-5)
        for name, values in of_features.items():
            np.testing.assert_allclose(have["by_feature"][name], values, rtol=1e-4, atol=1e-5, err_msg=name)
            if name != "cosine":
                np.testing.assert_allclose(have[name], values.mean(), rtol=1e-4)
        np.testing.assert_allclose(have["by_feature"]["frequency"], (z > 0).mean(0), rtol=1e-6)
        np.testing.assert_allclose(have["shrinkage"], np.mean(shrinkage), rtol=1e-4)
        np.testing.assert_allclose(have["dead_fraction"], (v == 0).all(0).mean())
        assert have["uniqueness"] == len({*cosines.argmax(1)}) / 16


def test_activations_of_unknown_features_are_refused():
    with pytest.raises(jaxsae.BadInput, match="train with --activations synthetic:NAME"):
        measure("synthetic", on_files((1, 1), random_sae(12, dtype=jnp.float32), np.ones((2, 5, 12), "f")))
    with pytest.raises(jaxsae.BadInput, match="has width 12, and the synthetic activations 32"):
        measure("synthetic", on_world((1, 1), random_sae(12, dtype=jnp.float32)))
    for world in (replace(WORLD, manifold=2), replace(WORLD, active=0.0, noise=1.0)):
        with pytest.raises(jaxsae.BadInput, match="features that are directions"):
            measure("synthetic", on_world((1, 1), random_sae(32, dtype=jnp.float32), world))


def test_other_made_activations_are_not_read_to_their_end():
    assert EvalConfig(activations="synthetic:zipf").tokens_read == TOKENS
    assert EvalConfig(activations="folder").tokens_read is None


def test_an_autoencoder_is_trained_on_a_world_and_scored(tmp_path, capsys):
    flags = "--activations synthetic:mixed --sae.n 64 --sae.k 4 --batch-size 256 --tokens 2048 --buffer-batches 2"
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), "--mesh", "2", "2", "--eval-tokens", "640", *flags.split()]) == 0
    assert jaxsae.describe(run)["activations"] == "synthetic:mixed"
    out = tmp_path / "out"
    assert main(["eval", str(run / "sae"), "--metrics", "synthetic", "--tokens", "640", "--out", str(out)]) == 0
    have = json.loads((out / "eval.json").read_text())
    assert have["synthetic"]["features"] == 256 and have["synthetic"]["tokens"] == 640
    assert (out / "eval" / "synthetic.png").exists() and have["eval_text"] == "synthetic:mixed"
    capsys.readouterr()
    assert main(["train", "--run", str(tmp_path / "no"), "--activations", "synthetic:none"]) == 2
    assert "allowed are synthetic:zipf" in capsys.readouterr().err
    assert not (tmp_path / "no" / "config.json").exists()
