"""Encode and decode as users call them: against another library's numbers and a dense reference."""

import io
import pickle
import zipfile
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.sae.encode import decode, dense, encode
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.types import SAE, Spec
from tests.sae import dense as reference


def test_openai_released_code(shared):
    """Their TopK autoencoder with its input normalisation; some rows have fewer than k positive pre-activations."""
    torch_file = shared("fixtures/peers/openai/topk")
    g = np.load(torch_file / "golden.npz")
    state = read_torch(torch_file / "topk.pt")
    spec = Spec("topk", 5, "ln_std", "unit_norm", True)
    sae = SAE(state["encoder.weight"], state["latent_bias"], state["decoder.weight"].T, state["pre_bias"], spec)
    code = encode(sae, g["x"])
    np.testing.assert_allclose(dense(code, sae.n), g["acts"], atol=2e-6 * np.abs(g["acts"]).max())
    np.testing.assert_allclose(decode(sae, code), g["recon"], atol=2e-6 * np.abs(g["recon"]).max())
    np.testing.assert_allclose(code.mean, g["mu"][:, 0], atol=1e-5)
    np.testing.assert_allclose(code.scale, g["std"][:, 0], rtol=1e-5)


def read_torch(path):
    """The float32 tensors of a torch.save archive, read without torch: an index that names raw numbers in a zip."""
    with zipfile.ZipFile(path) as archive:
        (index,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        folder = index.removesuffix("data.pkl")

        class Index(pickle.Unpickler):
            def persistent_load(self, storage):
                return np.frombuffer(archive.read(f"{folder}data/{storage[2]}"), np.uint8)

            def find_class(self, module, name):
                if name == "_rebuild_tensor_v2":
                    return rebuild
                return {"OrderedDict": OrderedDict}.get(name, f"{module}.{name}")

        state = Index(io.BytesIO(archive.read(index))).load()
    return {k: jnp.asarray(v) for k, v in state.items() if isinstance(v, np.ndarray) and v.dtype == np.float32}


def rebuild(storage, offset, shape, stride, *_):
    """Every tensor that the test asks for is float32; the others become something else, and are not looked at."""
    numbers = storage[: len(storage) // 4 * 4].view(np.float32)[offset:]
    return np.lib.stride_tricks.as_strided(numbers, shape, [4 * s for s in stride]) if shape else None


def random(n=32, d=8, k=4, normalise="unit_norm", dtype=jnp.float32):
    sae = reference.random_sae(jax.random.key(0), n, d, Spec("topk", k, normalise, "unit_norm", True), dtype)
    return sae, 3 + 2 * jax.random.normal(jax.random.key(1), (6, d), dtype)


@pytest.mark.parametrize("kind", ["unit_norm", "ln_std", "none"])
def test_equals_dense(x64, kind):
    sae, x = random(normalise=kind, dtype=jnp.float64)
    normal, mean, scale = normalise(x, kind)
    z = reference.code(sae, normal)
    code = encode(sae, x)
    np.testing.assert_allclose(dense(code, sae.n), z, atol=1e-13)
    want = denormalise(reference.reconstruct(sae, z), mean, scale)
    np.testing.assert_allclose(decode(sae, code), want, atol=1e-12)


def test_any_leading_axes():
    sae, x = random()
    code, stacked = encode(sae, x), encode(sae, x.reshape(2, 3, -1))
    np.testing.assert_allclose(decode(sae, stacked).reshape(6, -1), decode(sae, code), atol=1e-6)
    one = encode(sae, x[0])
    np.testing.assert_allclose(decode(sae, one), decode(sae, code)[0], atol=1e-5)
    assert one.values.shape == (4,) and dense(one, sae.n).shape == (32,)


def test_unused_slots_are_zero():
    sae, x = random()
    sae = sae.replace(b_enc=jnp.full(32, -100.0))
    code = encode(sae, x)
    assert (code.values == 0).all() and (code.indices == 0).all()


def test_bfloat16_selection_keeps_exact_values():
    sae, x = random(n=512, d=64, k=16)
    exact, cheap = dense(encode(sae, x), 512), dense(encode(sae, x, "bfloat16"), 512)
    both = (exact > 0) & (cheap > 0)
    np.testing.assert_array_equal(np.asarray(exact)[both], np.asarray(cheap)[both])
    assert both.sum() > 0.9 * (exact > 0).sum()


def test_normalisation_round_trip_and_constant_tokens(x64):
    x = np.random.default_rng(0).normal(3, 2, (5, 12))
    unit, mean, scale = normalise(jnp.asarray(x), "unit_norm")
    centred = x - x.mean(1, keepdims=True)
    np.testing.assert_allclose(unit, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(denormalise(unit, mean, scale), x, atol=1e-13)
    std, _, scale = normalise(jnp.asarray(x), "ln_std")
    np.testing.assert_allclose(scale, x.std(1, ddof=1), rtol=1e-13)
    np.testing.assert_allclose(std, centred / (x.std(1, ddof=1)[:, None] + 1e-5), atol=1e-13)
    constant, mean, scale = normalise(jnp.full((1, 12), 7.0), "unit_norm")
    assert (constant == 0).all() and mean[0] == 7 and scale[0] == 0
