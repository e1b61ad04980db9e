"""Transcoders, skip transcoders and crosscoders: losses and gradients of PyTorch and of sparsify in float64, on one
device and on a mesh; codes and reconstructions in the units of the language model; files."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae import interop
from jaxsae.errors import BadInput
from jaxsae.interop import native
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.types import SAE
from tests import configs
from tests.marks import slow
from tests.programs import local_gradient
from tests.sae.test_activation_functions import load

# As in make_coders_golden.py.
UNIT, WEIGHTS, K_AUX = 3.0, (0.7, 1 / 32, 0.3), 4
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "b_in", "W_skip")


@cache
def golden() -> dict:
    return dict(np.load(Path(__file__).with_name("coders_golden.npz")))


def case(name: str):
    """(arrays of a case, its configuration, the coder) in float64."""
    g = {key.partition("/")[2]: a for key, a in golden().items() if key.startswith(f"{name}/")}
    kind, _, family = name.partition("_")
    own = {"bandwidth": 0.5} if family == "jumprelu" else {}
    own |= {"decoder": "free", "sections": 2} if kind == "crosscoder" else {"skip": True}
    config = configs.sae(n=32, k=3, activation=family, **own)
    params = {key: jnp.asarray(a) for key, a in g.items() if key.startswith("param/")}
    extra = {key.rpartition(".")[2]: a for key, a in params.items() if "extra." in key}
    extra |= {"threshold": jnp.zeros(32)} if family == "batch_topk" else {}
    optional = {key: params[f"param/{key}"] for key in ARRAYS[4:] if f"param/{key}" in params}
    optional |= {} if kind == "crosscoder" else {"scale_out": jnp.array([UNIT])}
    return g, config, SAE(*(params[f"param/{key}"] for key in ARRAYS[:4]), config.spec(), extra, **optional)


CASES = ["transcoder_topk", "crosscoder_batch_topk", "crosscoder_relu"]
SLOW = ["multi_topk", "batch_topk", "jumprelu", "gated", "relu", "prolu_ste"]
SLOW = [f"transcoder_{family}" for family in SLOW] + ["crosscoder_topk"]
ON_MESHES = [(CASES[0], (1, 1)), (CASES[0], (2, 4)), (CASES[1], (1, 1)), (CASES[1], (2, 4)), (CASES[2], (1, 1))]
ON_MESHES += [slow(name, mesh) for name in SLOW for mesh in ((1, 1), (2, 4))] + [slow(CASES[2], (2, 4))]


@pytest.mark.parametrize("name, mesh", ON_MESHES, ids=str)
def test_loss_and_gradients_equal_pytorch(x64, name, mesh):
    g, config, sae = case(name)
    batch = (g["x"], g["y"]) if sae.scale_out is not None else (g["x"],)
    training = configs.training(batch_size=len(g["x"]))
    dead = jnp.asarray(g["dead"])
    grads, metrics, fired, least = local_gradient(mesh, config, training, K_AUX, sae, batch, dead, WEIGHTS)
    np.testing.assert_allclose(metrics["loss"], g["loss"], rtol=1e-12)
    np.testing.assert_array_equal(fired, (g["code"] > 0).sum(0))
    for key in ARRAYS:
        if (ours := getattr(grads, key)) is not None:
            np.testing.assert_allclose(ours, g[f"grad/{key}"], atol=1e-13, err_msg=key)
    for key, ours in grads.extra.items():
        want = g.get(f"grad/extra.{key}", np.zeros(32))
        np.testing.assert_allclose(ours, want, atol=1e-13, err_msg=key)
    if sae.scale_out is not None:
        # The unit of the output is measured, not trained.
        np.testing.assert_array_equal(grads.scale_out, 0)
    if name == "crosscoder_batch_topk":
        # The threshold is that of what competes: values times the summed norms of the sections.
        norms = np.linalg.norm(g["param/W_dec"].reshape(32, 2, -1), axis=2).sum(1)
        np.testing.assert_allclose(least, (g["code"] * norms)[g["code"] > 0].min(), rtol=1e-12)


@pytest.mark.parametrize("name", ["transcoder_topk", slow("transcoder_jumprelu"), "crosscoder_relu"])
def test_encode_and_decode_in_the_units_of_the_language_model(x64, name):
    g, _, sae = case(name)
    code = jaxsae.encode(sae, g["x"].reshape(4, 4, -1))
    np.testing.assert_allclose(jaxsae.dense(code, 32).reshape(16, -1), g["code"], atol=1e-12)
    out = g["out"]
    if name.startswith("transcoder"):
        out = UNIT * out
    else:
        parts = g["x"].reshape(16, 2, -1)
        length = np.linalg.norm(parts - parts.mean(-1, keepdims=True), axis=-1, keepdims=True)
        out = (out.reshape(parts.shape) * length + parts.mean(-1, keepdims=True)).reshape(out.shape)
    np.testing.assert_allclose(jaxsae.decode(sae, code).reshape(16, -1), out, atol=1e-12)


def test_skip_transcoder_of_sparsify(x64, shared):
    g = load(shared, "sparsify_transcoder_skip")
    config = configs.sae(96, 5, normalise="none", subtract_b_dec=False, skip=True)
    names = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    # They have x W_skip^T.
    W_skip = jnp.asarray(g["param/W_skip"].T)
    sae = SAE(*(jnp.asarray(g[f"param/{name}"]) for name in names), config.spec(), W_skip=W_skip)
    spread = ((g["y"] - g["y"].mean(0)) ** 2).sum()
    weights = g["y"].size / spread, 0.0, 0.0
    batch, training = (g["x"], g["y"]), configs.training(batch_size=len(g["x"]))
    grads, metrics, *_ = local_gradient((1, 1), config, training, 1, sae, batch, jnp.zeros(96, bool), weights)
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    for ours, name in zip((grads.W_enc, grads.b_enc, grads.W_dec, grads.b_dec, grads.W_skip.T), (*names, "W_skip")):
        want = g[f"full_grad/{name}"]
        np.testing.assert_allclose(ours, want, atol=1e-11 * max(1, np.abs(want).max()), err_msg=name)
    code = jaxsae.encode(sae, g["x"])
    np.testing.assert_allclose(jaxsae.dense(code, 96), g["acts"], atol=1e-12)
    np.testing.assert_allclose(jaxsae.decode(sae, code), g["recon"], atol=1e-12)


@pytest.mark.parametrize("kind", ["unit_norm", "ln_std"])
def test_sections_are_normalised_by_themselves(kind):
    x = np.random.default_rng(0).normal(size=(3, 4, 10)).astype(np.float32) * 3 + 1
    whole, mean, scale = normalise(x, kind, 2)
    for m in range(2):
        part, mean_of_part, scale_of_part = normalise(x[..., 5 * m : 5 * m + 5], kind)
        np.testing.assert_array_equal(whole[..., 5 * m : 5 * m + 5], part)
        np.testing.assert_array_equal(mean[..., m], mean_of_part)
        np.testing.assert_array_equal(scale[..., m], scale_of_part)
    np.testing.assert_allclose(denormalise(whole, mean, scale), x, atol=1e-4)


@pytest.mark.parametrize("name", ["transcoder_topk", "crosscoder_relu"])
def test_files(x64, tmp_path, name):
    _, _, sae = case(name)
    native.save(sae, tmp_path, {})
    loaded = interop.load(tmp_path)
    assert loaded.spec == sae.spec
    jax.tree.map(np.testing.assert_array_equal, loaded, sae)
    assert jax.tree.structure(loaded) == jax.tree.structure(sae)


def test_a_misshapen_skip_connection_is_refused(x64, tmp_path):
    _, _, sae = case("transcoder_topk")
    native.save(sae.replace(W_skip=sae.W_skip.T), tmp_path, {})
    with pytest.raises(BadInput, match=r"W_skip of shape \[10, 6\], not \[6, 10\]"):
        interop.load(tmp_path)


def test_sections_that_do_not_divide_are_refused(x64, tmp_path):
    _, _, sae = case("crosscoder_relu")
    native.save(sae.replace(spec=sae.spec.replace(sections=3)), tmp_path, {})
    with pytest.raises(BadInput, match="3 sections: activations of width 10 do not divide"):
        interop.load(tmp_path)
