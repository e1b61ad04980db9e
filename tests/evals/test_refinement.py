"""Refined values against SciPy's non-negative least squares, and the evaluation against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

import jaxsae
from jaxsae.evals import measure, refinement
from jaxsae.sae.types import Spec
from tests.evals.subjects import MESHES, on_files, on_text, random_sae
from tests.lm import tiny


def problem(c, d, tokens=20, n=40, seed=0):
    random = np.random.default_rng(seed)
    W = random.normal(size=(n, d))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    indices = np.stack([random.choice(n, c, replace=False) for _ in range(tokens)])
    return W, indices, random.uniform(0.1, 1, (tokens, c)), random.normal(size=(tokens, d))


def reference(W, indices, values, x):
    """NNLS over the slots in use of each token."""
    out = np.zeros_like(values)
    for b, used in enumerate(values != 0):
        # SciPy aborts without columns.
        if used.any():
            out[b, used] = nnls(W[indices[b, used]].T, x[b])[0]
    return out


@pytest.mark.parametrize("c, d", [(1, 12), (5, 12), (11, 12)])
def test_refined_values_equal_scipys_nnls(x64, c, d):
    W, indices, values, x = problem(c, d)
    have = np.asarray(refinement.refine(W, indices, values, x))
    np.testing.assert_allclose(have, reference(W, indices, values, x), atol=1e-7)
    assert (have == 0).any() and (have > 0).any()


def test_refined_values_in_float32_are_as_good_to_rounding():
    W, indices, values, x = (np.asarray(a, "f" if a.dtype == float else None) for a in problem(8, 30))
    error = lambda v: ((x - np.einsum("bc,bcd->bd", v, W[indices])) ** 2).sum(1)
    have = np.asarray(refinement.refine(W, indices, values, x))
    np.testing.assert_allclose(have, reference(W, indices, values, x), atol=1e-4)
    assert (error(have) <= error(values) * (1 + 1e-6)).all()


def test_unused_slots_stay_unused_and_the_best_values_do_not_move(x64):
    W, indices, values, x = problem(6, 12)
    values[:, 4:], indices[:, 4:], values[3] = 0, 0, 0
    have = np.asarray(refinement.refine(W, indices, values, x))
    assert (have[:, 4:] == 0).all() and (have[3] == 0).all()
    np.testing.assert_allclose(have, reference(W, indices, values, x), atol=1e-7)
    exact = np.einsum("bc,bcd->bd", values, W[indices])
    np.testing.assert_allclose(refinement.refine(W, indices, values, exact), values, atol=1e-7)


@pytest.mark.parametrize(
    "spec, mesh",
    [
        pytest.param(Spec("topk", 4, "unit_norm", "unit_norm", True), (1, 1), marks=pytest.mark.slow),
        (Spec("topk", 4, "unit_norm", "unit_norm", True), (2, 4)),
        (Spec("relu", 4, "none", "normalised", False), (2, 4)),
    ],
    ids=str,
)
def test_the_evaluation_equals_numpy(x64, spec, mesh):
    """With padding, which counts in nothing, and a decoder whose rows are normalised where they are used."""
    x = np.random.default_rng(0).normal(size=(6, 5, 12))
    x[0, 3:] = np.nan
    sae = random_sae(12, 24, spec=spec)
    result = measure("refinement", on_files(mesh, sae, x))
    rows = x.reshape(-1, 12)[~np.isnan(x.reshape(-1, 12)[:, 0])]
    code = jaxsae.encode(sae, jnp.asarray(rows))
    values, indices = np.asarray(code.values), np.asarray(code.indices)
    W, b = np.asarray(sae.as_used().W_dec), np.asarray(sae.b_dec)
    normal = (rows - np.asarray(code.mean)[:, None]) / np.asarray(code.scale)[:, None]
    refined, used = reference(W, indices, values, normal - b), values != 0
    spread = ((normal - normal.mean(0)) ** 2).sum()
    nmse = lambda v: ((normal - np.einsum("bc,bcd->bd", v, W[indices]) - b) ** 2).sum() / spread
    assert result["nmse"] == pytest.approx({"before": nmse(values), "after": nmse(refined)}, rel=1e-9)
    shift = (refined - values)[used]
    want = {"mean": shift.mean(), "std": shift.std(), "of_mean_value": shift.mean() / values[used].mean()}
    want["became_zero"] = (refined[used] < 1e-9).mean()
    assert {name: result["shift"][name] for name in want} == pytest.approx(want, rel=1e-6)
    assert result["tokens"] == 28 and result["values"] == used.sum() == sum(result["shift"]["histogram"])
    assert result["delta_ce"] == {"before": None, "after": None}


def test_the_loss_before_is_that_of_the_standard_evaluation_and_falls(x64, tmp_path):
    results = []
    for mesh in MESHES:
        subject = on_text(mesh, random_sae(tiny.WIDTH), "blocks.0.hook_resid_post", 7)
        results.append(measure("refinement", subject))
    # A small network of random weights need not lose less with a smaller error, but its numbers are the same anywhere.
    want = measure("standard", subject)
    assert results[0]["delta_ce"]["before"] == pytest.approx(want["delta_ce"], rel=1e-9)
    assert results[0]["nmse"]["before"] == pytest.approx(want["nmse"], rel=1e-9)
    assert results[0]["nmse"]["after"] < results[0]["nmse"]["before"]
    for name in ("nmse", "delta_ce"):
        assert results[1][name] == pytest.approx(results[0][name], rel=1e-8)
    histogram = results[0]["shift"].pop("histogram"), results[1]["shift"].pop("histogram")
    assert np.abs(np.subtract(*histogram)).sum() <= 2
    assert results[1]["shift"] == pytest.approx(results[0]["shift"], rel=1e-6)
    refinement.figure(results[0] | {"shift": {"histogram": histogram[0]}}, tmp_path / "refinement.png")
    assert (tmp_path / "refinement.png").read_bytes().startswith(b"\x89PNG")
