"""Linear predictions of the error, against ridge regression on all tokens at once."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.evals import EvaluationConfigs, dark_matter, measure
from jaxsae.sae.types import SAE, Spec
from tests.evals.subjects import MESHES, on_files, random_sae
from tests.sae import dense

PLAIN = Spec("topk", 3, "none", "unit_norm", True)


def r2(x_fit, y_fit, x_score, y_score, ridge):
    """Ridge regression by least squares with extra rows, and its R^2: (R^2, squared errors)."""
    mx, my, d = x_fit.mean(0), y_fit.mean(0), x_fit.shape[1]
    weight = ridge * x_fit.var(0).mean() * len(x_fit)
    A = np.concatenate([x_fit - mx, np.sqrt(weight) * np.eye(d)])
    B = np.concatenate([y_fit - my, np.zeros((d, y_fit.shape[1]))])
    W = np.linalg.lstsq(A, B, rcond=None)[0]
    left = ((y_score - my - (x_score - mx) @ W) ** 2).sum()
    return 1 - left / ((y_score - y_score.mean(0)) ** 2).sum(), left


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_predictions_equal_ridge_regression_of_all_tokens(x64, mesh, monkeypatch):
    """Seven contexts, three to fit on and four to score, some rows left out, in batches of one or more contexts."""
    monkeypatch.setattr("jaxsae.evals.subject.ROWS", 20)
    x = np.random.default_rng(0).normal(size=(7, 20, 6)) + 3
    x[1, 15:], x[5, 2] = np.nan, np.nan
    sae = random_sae(6, 32, spec=PLAIN)
    config = EvaluationConfigs(dark_matter=dark_matter.Config(0.05))
    have = measure("dark_matter", on_files(mesh, sae, x), config)
    halves = [part[~np.isnan(part[..., 0])] for part in (x[:3], x[3:])]
    errors = [part - np.asarray(dense.reconstruct(sae, dense.code(sae, part))) for part in halves]
    norms = [np.linalg.norm(e, axis=1, keepdims=True) for e in errors]
    targets = {"error": errors, "norm": norms, "squared_norm": [n**2 for n in norms]}
    for name, (y_fit, y_score) in targets.items():
        want, left = r2(halves[0], y_fit, halves[1], y_score, 0.05)
        np.testing.assert_allclose(have[f"{name}_r2"], want, rtol=1e-7)
        if name == "error":
            spread = ((halves[1] - halves[1].mean(0)) ** 2).sum()
            np.testing.assert_allclose(have["nmse_dark"], left / spread, rtol=1e-9)
            np.testing.assert_allclose(have["nmse"], (errors[1] ** 2).sum() / spread, rtol=1e-9)
            np.testing.assert_allclose(have["nmse_linear"], have["nmse"] - have["nmse_dark"], rtol=1e-9)
    assert (have["tokens_fit"], have["tokens_score"]) == (55, 79)


def test_an_error_that_is_linear_in_the_input_is_found_whole():
    """An autoencoder that returns half of its input, for which a latent stands for each sign of each coordinate."""
    d = 4
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)])
    half = SAE(both, jnp.zeros(2 * d), both / 2, jnp.zeros(d), Spec("topk", 2 * d, "none", "free", True))
    x = np.random.default_rng(1).normal(size=(40, 20, d)).astype("f")
    have = measure("dark_matter", on_files((1, 1), half, x))
    assert have["error_r2"] == pytest.approx(1, abs=1e-4) and have["nmse_dark"] < 1e-4
    assert have["nmse_linear"] == pytest.approx(0.25, rel=0.05)
    # A symmetric input says nothing linear of its norm.
    assert abs(have["norm_r2"]) < 0.1


def test_what_does_not_vary_predicts_nothing(tmp_path):
    x = np.ones((4, 5, 6), "f")
    have = measure("dark_matter", on_files((1, 1), random_sae(6, 32, spec=PLAIN, dtype=jnp.float32), x))
    assert have["error_r2"] is None or have["error_r2"] <= 0
    dark_matter.figure(have, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_one_context_has_no_halves():
    subject = on_files((1, 1), random_sae(6, dtype=jnp.float32), np.ones((1, 5, 6), "f"))
    with pytest.raises(jaxsae.BadInput, match="needs at least two contexts"):
        measure("dark_matter", subject)
    with pytest.raises(jaxsae.BadInput, match=r"--dark-matter.ridge is 0"):
        dark_matter.Config(0)
