"""Curves of test-time activation functions compared with dense NumPy, token by token, on one device and on a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxsae
from jaxsae.evals import EvaluationConfigs, measure, progressive
from jaxsae.sae.types import Spec
from tests.evals.subjects import MESHES, on_files, on_text, placed, random_sae, two_layers
from tests.lm import tiny

HOOK, KS = "blocks.0.hook_resid_post", (1, 3, 20, 64)
UNIT = Spec("topk", 4, "unit_norm", "unit_norm", True)


@partial(jax.jit, static_argnames="hook")
def logits_with(lm, tokens, hook, new):
    return lm.run(tokens, {hook: lambda _: new})


def config(ks=KS, tokens=10**6):
    return EvaluationConfigs(progressive=progressive.Config(tokens, ks))


def normalised(x):
    mean = x.mean(-1, keepdims=True)
    scale = np.linalg.norm(x - mean, axis=-1, keepdims=True)
    return (x - mean) / scale, mean, scale


def by_brute_force(sae, normal, ks):
    """Pre-activations with negative ones 0, thresholds, and the codes of all points {curve: [K, rows, n]}."""
    rows = normal.reshape(-1, normal.shape[-1])
    W, b, b_dec = (np.asarray(a) for a in (sae.W_enc, sae.b_enc, sae.b_dec))
    z = np.maximum((rows - b_dec) @ W.T + b, 0)
    kth = np.stack([np.sort(z, 1)[:, -k] for k in ks])
    thetas = np.unique(kth.mean(1))
    topk = np.stack([np.where(z >= t[:, None], z, 0) for t in kth])
    return thetas, {"topk": topk, "jumprelu": np.stack([np.where(z > theta, z, 0) for theta in thetas])}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_curves_equal_brute_force(x64, mesh):
    """Of codes, reconstructions, and what the language model loses; seven contexts divide over no mesh."""
    lm = two_layers()
    sae = random_sae(tiny.WIDTH, spec=UNIT)
    subject = on_text(mesh, sae, HOOK, 7, lm)
    have, tokens = measure("progressive", subject, config()), subject.source.tokens
    x = np.asarray(jax.jit(lambda lm: lm.prefix(tokens, HOOK))(lm))
    normal, mean, scale = normalised(x)
    thetas, codes = by_brute_force(sae, normal, KS)
    np.testing.assert_allclose(have["jumprelu"]["theta"], thetas, rtol=1e-9)
    assert have["topk"]["k"] == list(KS) and have["tokens"] == tokens.size
    predict = lambda new: scipy.special.log_softmax(np.asarray(logits_with(lm, tokens, HOOK, new)), -1)
    original = predict(x)
    ce_of = lambda log_p: -np.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1).mean()
    np.testing.assert_allclose(have["ce_original"], ce_of(original), rtol=1e-9)
    spread = ((normal - normal.mean((0, 1))) ** 2).sum()
    for curve in codes:
        best = int(np.argmin(have[curve]["nmse"]))
        assert have[curve]["least_nmse"] == have[curve]["nmse"][best]
        assert have[curve]["l0_of_least_nmse"] == have[curve]["l0"][best]
        assert have[curve]["least_ce"] == min(have[curve]["ce"])
    for curve, of_points in codes.items():
        xhats = [(z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec)).reshape(x.shape) for z in of_points]
        np.testing.assert_allclose(have[curve]["l0"], [(z > 0).sum(1).mean() for z in of_points], rtol=1e-12)
        nmse = [((normal - xhat) ** 2).sum() / spread for xhat in xhats]
        np.testing.assert_allclose(have[curve]["nmse"], nmse, rtol=1e-9)
        new = [predict(xhat * scale + mean) for xhat in xhats]
        np.testing.assert_allclose(have[curve]["ce"], [ce_of(log_q) for log_q in new], rtol=1e-9)
        kl = [(np.exp(original) * (original - log_q)).sum(-1).mean() for log_q in new]
        np.testing.assert_allclose(have[curve]["kl"], kl, rtol=1e-9)


def test_the_point_of_training_is_the_autoencoder_itself():
    """At k' = k, TopK is what `standard` measures; and tokens that do not count are left out of both."""
    x = np.random.default_rng(0).normal(size=(6, 5, 12)).astype("f")
    x[2, 1:] = np.nan
    subject = on_files((1, 1), random_sae(12, dtype=jnp.float32), x)
    have, want = measure("progressive", subject, config((4, 64))), measure("standard", subject)
    assert have["tokens"] == 26
    np.testing.assert_allclose(have["topk"]["nmse"][0], want["nmse"], rtol=1e-5)
    np.testing.assert_allclose(have["topk"]["l0"][0], want["l0"], rtol=1e-6)
    assert have["topk"]["ce"] is have["topk"]["least_ce"] is have["ce_original"] is None
    # TopK(n) and JumpReLU(0) are the same ReLU.
    np.testing.assert_allclose(have["topk"]["l0"][1], have["jumprelu"]["l0"][0], rtol=1e-6)


def test_the_kth_largest_is_over_all_shards(x64):
    x = np.random.default_rng(1).normal(size=(16, 12))
    for spec in (UNIT, Spec("relu", 1, "none", "normalised", False)):
        sae = random_sae(12, 64, spec=spec)
        z = np.maximum((x - np.asarray(sae.input_bias())) @ np.asarray(sae.W_enc).T + np.asarray(sae.b_enc), 0)
        for shape in MESHES:
            mesh = jaxsae.distributed.mesh.make_mesh(*shape)
            with jax.set_mesh(mesh):
                have = jax.jit(progressive.kth_values)(placed(mesh, sae), x, np.asarray(KS))
            np.testing.assert_allclose(have, np.sort(z, 1)[:, [-k for k in KS]], rtol=1e-12, atol=1e-300)


def test_pieces_of_tokens_and_contexts_do_not_matter(monkeypatch):
    x = np.random.default_rng(2).normal(size=(6, 5, 12)).astype("f")
    subject = on_files((1, 1), random_sae(12, dtype=jnp.float32), x)
    whole = measure("progressive", subject, config())
    monkeypatch.setattr(progressive, "PREACTIVATIONS", 64 * 7)
    jax.clear_caches()
    pieces = measure("progressive", subject, config())
    for curve in progressive.CURVES:
        np.testing.assert_allclose(pieces[curve]["nmse"], whole[curve]["nmse"], rtol=1e-5)


def test_only_as_many_tokens_as_are_asked_for():
    x = np.random.default_rng(3).normal(size=(6, 5, 12)).astype("f")
    subject = on_files((1, 1), random_sae(12, dtype=jnp.float32), x)
    assert measure("progressive", subject, config(tokens=10))["tokens"] == 10


def test_default_grid_is_powers_of_two_and_the_k_of_training():
    subject = on_files((1, 1), random_sae(12, 48, spec=UNIT.replace(k=5), dtype=jnp.float32), np.ones((2, 5, 12), "f"))
    have = measure("progressive", subject)
    assert have["topk"]["k"] == [1, 2, 4, 5, 8, 16, 32, 48] and have["trained_k"] == 5
    relu = random_sae(12, 8, spec=Spec("relu", 5, "none", "free", False), dtype=jnp.float32)
    have = measure("progressive", on_files((1, 1), relu, np.ones((2, 5, 12), "f")))
    assert have["topk"]["k"] == [1, 2, 4, 8] and have["trained_k"] is None


def test_what_cannot_be_swapped_is_refused():
    gated = random_sae(12, spec=Spec("gated", 4, "none", "free", True), dtype=jnp.float32)
    with pytest.raises(jaxsae.BadInput, match="the values of gated are not its pre-activations"):
        measure("progressive", on_files((1, 1), gated, np.ones((2, 5, 12), "f")))
    subject = on_files((1, 1), random_sae(12, dtype=jnp.float32), np.ones((2, 5, 12), "f"))
    with pytest.raises(jaxsae.BadInput, match=r"--progressive.k has 65: allowed is 1 to the number of latents, 64"):
        measure("progressive", subject, config((65,)))
    for bad in ({"tokens": 0}, {"k": (0, 3)}):
        with pytest.raises(jaxsae.BadInput):
            progressive.Config(**bad)


def test_the_picture_is_drawn_with_and_without_a_language_model(tmp_path):
    values = {"l0": [1.0, 4.0], "nmse": [0.5, 0.2], "ce": [4.0, 3.0], "kl": [1.0, 0.1]}
    result = {"trained_k": 4, "topk": {"k": [1, 4], **values}, "jumprelu": {"theta": [0.1, 0.5], **values}}
    for number, ce in enumerate((2.5, None)):
        progressive.figure(result | {"ce_original": ce}, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
