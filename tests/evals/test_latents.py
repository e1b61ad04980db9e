"""Latents and reconstructions in chunks inside jit, against `jaxsae.encode` and `decode`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.evals import latents
from jaxsae.sae import activations
from jaxsae.sae.struct import Spec
from sae import dense

D, N, TOKENS = 12, 40, 23


def example(activation, normalise="none", decoder="free"):
    """An autoencoder of every family and tokens [TOKENS, D]."""
    sae = dense.random_sae(jax.random.key(0), N, D, Spec(activation, 4, normalise, decoder, False), jnp.float64)
    sae = sae.replace(W_dec=3 * sae.W_dec)
    extra = activations.get(activation).init(jax.random.key(1), N, jnp.float64)
    return sae.replace(extra=extra), jax.random.normal(jax.random.key(2), (TOKENS, D), jnp.float64)


@pytest.mark.parametrize("chunk", [7, 23, 100])
@pytest.mark.parametrize("activation", activations.REGISTRY)
def test_every_family_equals_encode_and_decode(x64, monkeypatch, activation, chunk):
    monkeypatch.setattr(latents, "CHUNK", chunk)
    sae, x = example(activation)
    code = jaxsae.encode(sae, x)
    z = np.asarray(jaxsae.dense(code, N))
    np.testing.assert_allclose(jax.jit(latents.dense)(sae, x), z, atol=1e-12)
    np.testing.assert_allclose(jax.jit(latents.reconstruct)(sae, x), jaxsae.decode(sae, code), atol=1e-12)
    some, among = np.array([3, 0, 39, 3]), np.arange(TOKENS) % 3 > 0
    values, scale = jax.jit(latents.columns)(sae, x, some)
    np.testing.assert_allclose(values, z[:, some], atol=1e-12)
    assert (scale == 1).all()
    np.testing.assert_array_equal(jax.jit(latents.counts)(sae, x, among), (z[among] != 0).sum(0))


@pytest.mark.parametrize("normalise, decoder", [("unit_norm", "normalised"), ("ln_std", "unit_norm")])
def test_normalisation_is_undone_and_leading_axes_stay(x64, monkeypatch, normalise, decoder):
    monkeypatch.setattr(latents, "CHUNK", 5)
    sae, x = example("relu", normalise, decoder)
    x = x[:20].reshape(4, 5, D) * 7 + 1
    code = jaxsae.encode(sae, x)
    np.testing.assert_allclose(jax.jit(latents.reconstruct)(sae, x), jaxsae.decode(sae, code), atol=1e-12)
    scale = jax.jit(partial(latents.columns, latents=np.arange(2)))(sae, x.reshape(-1, D))[1]
    np.testing.assert_allclose(scale, code.scale.reshape(-1), atol=1e-12)


def test_batches_cover_all_contexts():
    tokens = np.arange(14).reshape(7, 2)
    parts = list(latents.batches(tokens, 3))
    assert [len(part) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(parts), tokens)
