"""Latents, reconstructions and counts over a mesh, compared with `jaxsae.encode` and `decode` on one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals import latents
from jaxsae.evals.subject import reconstruct
from jaxsae.sae import activation_functions
from jaxsae.sae.layout import TOKENS
from jaxsae.sae.normalise import denormalise
from jaxsae.sae.types import Spec
from tests.evals.subjects import MESHES, placed, random_sae
from tests.marks import slow

D, N, TOKENS_OF_X = 12, 40, 46
SOME = np.array([3, 0, 39, 3])


def example(activation, normalise="none", decoder="free"):
    """An autoencoder of a family and tokens [46, D]."""
    sae = random_sae(D, N, spec=Spec(activation, 4, normalise, decoder, False))
    sae = sae.replace(W_dec=3 * sae.W_dec)
    family = activation_functions.get(activation)
    extra = family.init(jax.random.key(1), N, jnp.float64, family.Config())
    return sae.replace(extra=extra), jax.random.normal(jax.random.key(2), (TOKENS_OF_X, D), jnp.float64)


@partial(jax.jit, static_argnames="chunk")
def everything(sae, x, among, chunk):
    """What every function of the module returns, in one program."""
    encoded = latents.encode(sae, x)
    columns, scale = latents.columns(sae, x, SOME, chunk=chunk)
    return {
        "values": encoded.values,
        "numbers": encoded.numbers,
        "xhat": latents.reconstruct(sae, x, chunk=chunk),
        "l0": latents.reconstruct_normalised(sae, x, chunk=chunk)[1],
        "counts": latents.counts(sae, x, among, chunk=chunk),
        "counted": latents.reconstruct_and_count(sae, x, among, chunk=chunk),
        "columns": columns,
        "scale": scale,
    }


@pytest.mark.parametrize("mesh, chunk", [slow(MESHES[0], 100), (MESHES[1], 7)], ids=str)
@pytest.mark.parametrize("activation", activation_functions.REGISTRY)
def test_every_family_equals_encode_and_decode_on_every_mesh(x64, activation, mesh, chunk):
    sae, x = example(activation)
    code = jaxsae.encode(sae, x)
    z, among = np.asarray(jaxsae.dense(code, N)), np.arange(TOKENS_OF_X) % 3 > 0
    grid = make_mesh(*mesh)
    with jax.set_mesh(grid):
        have = jax.device_get(everything(placed(grid, sae), jax.reshard(x, TOKENS), jax.reshard(among, TOKENS), chunk))
    dense = np.zeros_like(z)
    np.add.at(dense, (np.arange(len(z))[:, None], have["numbers"]), have["values"])
    np.testing.assert_allclose(dense, z, atol=1e-12)
    np.testing.assert_allclose(have["xhat"], jaxsae.decode(sae, code), atol=1e-12)
    with jax.set_mesh(grid):
        again = latents.code(placed(grid, sae), jax.reshard(x, TOKENS))
        values, numbers = np.asarray(again.values), np.asarray(again.indices)
        xhat = jax.jit(latents.decode, static_argnames="chunk")(placed(grid, sae), again.values, again.indices, chunk)
    assert (np.diff(values) <= 0).all() and values.shape[1] < 2 * code.values.shape[1]
    dense = np.zeros_like(z)
    np.add.at(dense, (np.arange(len(z))[:, None], numbers), values)
    np.testing.assert_allclose(dense, z, atol=1e-12)
    np.testing.assert_allclose(denormalise(np.asarray(xhat), again.mean, again.scale), have["xhat"], atol=1e-12)
    np.testing.assert_array_equal(have["l0"], (z > 0).sum(1))
    np.testing.assert_array_equal(have["counts"], (z[among] != 0).sum(0))
    xhat, l0, fired, written = have["counted"]
    np.testing.assert_array_equal(xhat, have["xhat"])
    np.testing.assert_array_equal(l0, have["l0"])
    np.testing.assert_array_equal(fired, (z[among] > 0).sum(0))
    rows = np.asarray(sae.as_used().W_dec)
    np.testing.assert_allclose(written, (np.maximum(z[among], 0) ** 2).sum(0) * (rows**2).sum(1), atol=1e-10)
    np.testing.assert_allclose(have["columns"], z[:, SOME], atol=1e-12)
    assert (have["scale"] == 1).all()


@pytest.mark.parametrize("normalise, decoder", [("unit_norm", "normalised"), ("ln_std", "unit_norm")])
def test_normalisation_is_undone_and_contexts_stay(x64, normalise, decoder):
    sae, x = example("relu", normalise, decoder)
    x = x[:40].reshape(8, 5, D) * 7 + 1
    code = jaxsae.encode(sae, x)
    with jax.set_mesh(make_mesh(1, 1)):
        have = jax.jit(reconstruct)(sae, x)
        scale = jax.jit(lambda sae, x: latents.columns(sae, x, SOME)[1])(sae, x.reshape(-1, D))
    np.testing.assert_allclose(have, jaxsae.decode(sae, code), atol=1e-12)
    np.testing.assert_allclose(scale, code.scale.reshape(-1), atol=1e-12)


def test_chunks_need_not_divide():
    """A prime number of rows is not taken one row at a time."""
    seen = []

    def double(part):
        seen.append(part["a"].shape)
        return 2 * part["a"], part["b"].sum(-1)

    a, b = np.arange(13.0), np.arange(26.0).reshape(13, 2)
    have = latents.in_chunks(double, 5, {"a": a, "b": b})
    np.testing.assert_array_equal(have[0], 2 * a)
    np.testing.assert_array_equal(have[1], b.sum(1))
    assert {*seen} == {(5,)}
