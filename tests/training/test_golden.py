"""Losses and all gradients of a TopK step with AuxK against the training code of other libraries, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.sae.config import SAEConfig
from jaxsae.sae.decoder import unit_rows
from jaxsae.sae.forward import preacts_of, reconstruct, values_of
from jaxsae.sae.init import geometric_median
from jaxsae.sae.select import support
from jaxsae.sae.types import SAE, Spec
from jaxsae.training.config import TrainingConfig
from jaxsae.training.optimizer import project_decoder_gradient
from tests.programs import local_gradient

K = 5


def gradients(sae, x, dead, mse_scale, auxk_coef, k_aux):
    config, weights = SAEConfig(sae.n, K, normalise="none"), (mse_scale, auxk_coef, 0)
    grads, metrics, *_ = local_gradient((1, 1), config, TrainingConfig(), k_aux, sae, (x,), dead, weights)
    metrics = {k: float(v) for k, v in metrics.items()}
    return metrics["loss"], metrics, jax.device_get(grads)


@pytest.mark.parametrize("case", ["few_dead", "many_dead"])
def test_openai(x64, shared, case):
    g = dict(np.load(shared(f"fixtures/peers/train/openai_auxk_{case}") / "golden.npz"))
    names = "encoder.weight", "latent_bias", "decoder.weight", "pre_bias"
    arrays = [jnp.asarray(g[f"param/{n}"].T if n == "decoder.weight" else g[f"param/{n}"]) for n in names]
    sae = SAE(*arrays, Spec("topk", K, "none", "unit_norm", True))
    x, coef = jnp.asarray(g["x"]), float(g["auxk_coef"])
    total, metrics, grads = gradients(sae, x, jnp.asarray(g["dead"]), float(g["mse_scale"]), coef, int(g["auxk"]))
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/recons"], rtol=1e-12)
    np.testing.assert_allclose(coef * metrics["auxk"], g["loss/auxk"], rtol=1e-12)
    np.testing.assert_allclose(total, g["loss/total"], rtol=1e-12)
    chosen = support(sae, x)
    recon = reconstruct(sae, values_of(sae, preacts_of(sae, x, chosen), chosen), chosen)
    np.testing.assert_allclose(recon, g["recon"], atol=1e-12)
    np.testing.assert_allclose(grads.W_enc, g["grad/encoder.weight"], atol=1e-12)
    np.testing.assert_allclose(grads.b_enc, g["grad/latent_bias"], atol=1e-12)
    np.testing.assert_allclose(grads.W_dec, g["grad/decoder.weight"].T, atol=1e-12)
    # Their AuxK decodes with pre_bias and detaches it in the target only, so pre_bias gets a stray gradient.
    e, ehat = np.asarray(x - g["recon"]), g["aux_recon"] - g["param/pre_bias"]
    stray = coef * 2 * (ehat - e).sum(0) / ((e - e.mean(0)) ** 2).sum()
    np.testing.assert_allclose(grads.b_dec + stray, g["grad/pre_bias"], atol=1e-12)
    # They project against rows that they renormalise first.
    unit = sae.replace(W_dec=unit_rows(sae.W_dec))
    projected, _ = project_decoder_gradient().update(grads, None, unit)
    np.testing.assert_allclose(projected.W_dec, g["grad_projected/decoder.weight"].T, atol=1e-12)


@pytest.mark.parametrize("case", ["few_dead", "many_dead"])
def test_dictionary_learning(x64, shared, case):
    g = dict(np.load(shared(f"fixtures/peers/train/dl_topk_auxk_{case}") / "golden.npz"))
    names = "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"
    arrays = [jnp.asarray(g[f"param/{n}"].T if n == "decoder.weight" else g[f"param/{n}"]) for n in names]
    sae = SAE(*arrays, Spec("topk", K, "none", "unit_norm", True))
    x, dead = jnp.asarray(g["x"]), jnp.asarray(g["dead_mask_used"])
    # They sum squared errors over d where the paper takes the mean, and compute AuxK in float32.
    d = x.shape[1]
    total, metrics, grads = gradients(sae, x, dead, float(d), 1 / 32, min(d // 2, int(dead.sum())))
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/l2_loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["auxk"], g["loss/auxk_loss"], rtol=1e-6)
    np.testing.assert_allclose(total, g["loss/loss"], rtol=1e-8)
    pairs = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"}
    for ours, theirs in pairs.items():
        want = g[f"grad/{theirs}"].T if ours == "W_dec" else g[f"grad/{theirs}"]
        np.testing.assert_allclose(getattr(grads, ours), want, atol=1e-6 * np.abs(want).max(), err_msg=ours)


def test_geometric_median(x64, shared):
    g = np.load(shared("fixtures/peers/train/dl_geometric_median") / "golden.npz")
    np.testing.assert_allclose(geometric_median(jnp.asarray(g["x"])), g["median"], atol=1e-5)
