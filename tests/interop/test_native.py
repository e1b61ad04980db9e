"""Autoencoders on disk: exact, deterministic, and never guessed at."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxsae
from jaxsae import interop
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.interop import native
from jaxsae.sae.types import Spec
from tests.sae import dense

SAE = dense.random_sae(jax.random.key(0), 16, 4, Spec("topk", 3, "ln_std", "free", False), jnp.float32)


@pytest.fixture
def folder(tmp_path):
    native.save(SAE, tmp_path / "sae", {"hook": "blocks.1.hook_resid_post", "lm": "embedded"})
    return tmp_path / "sae"


def test_round_trip(folder, tmp_path):
    for path in (folder, tmp_path, folder / "sae.safetensors", str(folder)):
        sae = interop.load(path)
        assert sae.spec == SAE.spec
        jax.tree.map(np.testing.assert_array_equal, sae, SAE)
    about = interop.describe(tmp_path)
    assert about["hook"] == "blocks.1.hook_resid_post" and about["spec"]["k"] == 3


def test_the_same_bytes_every_time(folder):
    before = (folder / "sae.safetensors").read_bytes()
    native.save(SAE, folder, {"hook": "blocks.1.hook_resid_post", "lm": "embedded"})
    assert (folder / "sae.safetensors").read_bytes() == before


def test_the_file_alone_is_enough(folder, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "sae.safetensors").read_bytes())
    assert interop.load(alone).spec == SAE.spec


def test_a_file_that_does_not_say_is_refused(folder):
    tensors = load_file(folder / "sae.safetensors")
    save_file(tensors, folder / "sae.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"spec.activation, spec.k, spec.normalise, spec.decoder, spec.subtract_b_dec"):
        interop.load(folder)
    said = {"format": "jaxsae-1", "spec": {"activation": "topk", "k": 3, "normalise": "none", "decoder": "free"}}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match=r"must say spec.subtract_b_dec$"):
        interop.load(folder)
    said["spec"]["subtract_b_dec"] = True
    (folder / "config.json").write_text(json.dumps(said))
    assert interop.load(folder).spec == Spec("topk", 3, "none", "free", True)
    said["spec"]["activation"] = "softmax"
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match=r"'softmax': allowed are topk"):
        interop.load(folder)


def rewrite(folder, **changes):
    """The same weights with another document beside them."""
    document = json.loads((folder / "config.json").read_text())
    save_file(load_file(folder / "sae.safetensors"), folder / "sae.safetensors")
    (folder / "config.json").write_text(json.dumps({**document, **changes}))


def test_what_a_newer_version_says_is_refused_by_name(folder):
    rewrite(folder, format="jaxsae-3")
    with pytest.raises(BadInput, match=r"format jaxsae-3, and this jaxsae reads up to jaxsae-2.*newer version"):
        interop.load(folder)
    spec = json.loads((folder / "config.json").read_text())["spec"]
    rewrite(folder, format="jaxsae-2", spec={**spec, "input_gain": 2.0})
    with pytest.raises(BadInput, match=r"spec.input_gain = 2.0, which this version of jaxsae does not know"):
        interop.load(folder)


def test_a_bias_of_the_input_alone(tmp_path):
    sae = SAE.replace(b_in=jnp.arange(4.0))
    native.save(sae, tmp_path, {})
    loaded = interop.load(tmp_path)
    np.testing.assert_array_equal(loaded.b_in, sae.b_in)
    x = jnp.ones((3, 4))
    tied = SAE.replace(b_dec=sae.b_in, spec=SAE.spec.replace(subtract_b_dec=True))
    np.testing.assert_array_equal(jaxsae.encode(loaded, x).values, jaxsae.encode(tied, x).values)


def stored_as(folder, dtype):
    """The same autoencoder with its numbers saved as `dtype`; returns them."""
    arrays = {name: a.astype(dtype) for name, a in load_file(folder / "sae.safetensors").items()}
    save_file(arrays, folder / "sae.safetensors", {"jaxsae": (folder / "config.json").read_text()})
    return arrays


@pytest.mark.parametrize("mesh", [None, (2, 4)], ids=str)
@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_half_and_double_precision_encode_and_decode_in_float32(tmp_path, dtype, activation, mesh, recwarn):
    spec = Spec(activation, 3, "ln_std", "free", True)
    extra = {"log_threshold": jnp.full(16, -1.0)} if activation == "jumprelu" else {}
    native.save(SAE.replace(spec=spec, extra=extra), tmp_path, {})
    arrays = stored_as(tmp_path, dtype)
    sae = interop.load(tmp_path, mesh and make_mesh(*mesh))
    assert {str(a.dtype) for a in jax.tree.leaves(sae)} == {"float32"} and not recwarn.list
    np.testing.assert_array_equal(sae.W_enc, arrays["W_enc"].astype(np.float32))
    assert mesh is None or sae.W_enc.sharding.spec == jax.P("latent")
    if mesh is None:
        x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        code = jaxsae.encode(sae, x)
        xhat = jaxsae.decode(sae, code)
        assert code.values.dtype == xhat.dtype == np.float32
        np.testing.assert_allclose(xhat, by_numpy(arrays, x, activation), atol=1e-5)


def by_numpy(arrays, x, activation):
    """Reconstructions [B, d] in float64, of the numbers that the file holds."""
    W_enc, b_enc, W_dec, b_dec = (arrays[name].astype(np.float64) for name in native.ARRAYS)
    mean = x.mean(1, keepdims=True)
    scale = x.std(1, keepdims=True, ddof=1)
    z = ((x - mean) / (scale + 1e-5) - b_dec) @ W_enc.T + b_enc
    least = np.sort(z, 1)[:, -3, None] if activation == "topk" else np.exp(arrays["extra.log_threshold"].astype(float))
    z = np.where((z >= least) & (z > 0), z, 0)
    return (z @ W_dec + b_dec) * scale + mean


@pytest.mark.parametrize("dtype, message", [(np.int32, "W_enc of type int32"), (ml_dtypes.float8_e5m2, "in F8_E5M2")])
def test_numbers_that_are_no_weights_are_refused_by_name(folder, dtype, message):
    stored_as(folder, dtype)
    with pytest.raises(BadInput, match=message):
        interop.load(folder)


def test_double_precision_stays_if_jax_has_it(x64, folder):
    stored_as(folder, np.float64)
    assert {str(a.dtype) for a in jax.tree.leaves(interop.load(folder))} == {"float64"}


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"not json"], ids=repr)
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / "sae.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=r"sae.safetensors"):
        interop.load(tmp_path)


def test_truncated_or_incomplete(folder, tmp_path):
    whole = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(whole[:-4])
    with pytest.raises(BadInput, match="cannot be read"):
        interop.load(folder)
    text = (folder / "config.json").read_text()
    save_file({"W_enc": np.zeros((4, 2), np.float32)}, folder / "sae.safetensors", {"jaxsae": text})
    with pytest.raises(BadInput, match="lacks b_enc, W_dec, b_dec"):
        interop.load(folder)
    with pytest.raises(BadInput, match="holds no autoencoder"):
        interop.load(tmp_path / "nothing")
