"""Each fold changes the numbers of an autoencoder and not what it computes; the reference is plain NumPy."""

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import BadInput
from jaxsae.sae import fold
from jaxsae.sae.types import SAE
from tests.interop import plain
from tests.interop.families import activations, random_sae, skip

X = activations()


def close(have, want, tolerance=2e-6):
    for a, b in zip(have, want):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())
        np.testing.assert_array_equal(a != 0, b != 0)


# On JAX's arrays as on NumPy's.
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_an_input_scale(array):
    sae = random_sae("topk")
    want = plain.outputs(sae, 0.3 * X)
    folded = fold.input_scale(jax.tree.map(array, sae), 0.3)
    close(plain.outputs(folded, X), (want[0], want[1] / 0.3))
    with pytest.raises(BadInput, match="ln_std normalises each token by itself"):
        fold.input_scale(random_sae("topk", "ln_std"), 0.3)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("family", ["relu", "jumprelu", "gated", "prolu_relu"])
def test_decoder_norms(family, array):
    sae = random_sae(family, "ln_std")
    norms = np.linalg.norm(sae.W_dec, axis=1)
    z, xhat = plain.outputs(sae, X)
    folded = fold.decoder_norms(jax.tree.map(array, sae))
    close(plain.outputs(folded, X), (z * norms, xhat))
    np.testing.assert_allclose(np.linalg.norm(folded.W_dec, axis=1), 1, rtol=1e-6)
    assert folded.spec.decoder == "unit_norm" and fold.decoder_norms(folded) is folded


def test_decoder_norms_of_what_compares_latents():
    with pytest.raises(BadInput, match="topk cannot be scaled to norm 1: it compares latents"):
        fold.decoder_norms(random_sae("topk"))
    sae = random_sae("topk")
    norms = fold.row_norms(sae)
    # As scaled: those with long rows win.
    u = ((X - sae.b_dec) @ sae.W_enc.T + sae.b_enc) * norms
    kept = np.sort(u, 1)[:, -sae.spec.k, None]
    z = plain.outputs(fold.latent_scale(sae, norms), X)[0]
    np.testing.assert_array_equal(z != 0, (u >= kept) & (u > 0))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("family", ["relu", "topk", "jumprelu", "gated"])
def test_the_input_bias_there_and_back(family, array):
    for normalise in ("none", "norm"):
        sae = random_sae(family, normalise)
        want = plain.outputs(sae, X)
        without = fold.input_bias(jax.tree.map(array, sae))
        assert not without.spec.subtract_b_dec and fold.input_bias(without) is without
        close(plain.outputs(without, X), want)
        back = fold.subtracted_bias(without)
        assert back.spec.subtract_b_dec and fold.subtracted_bias(back) is back
        close(plain.outputs(back, X), want)


def test_a_bias_of_the_input_alone():
    sae = random_sae("relu", transcoder=True, b_in=np.linspace(-1, 1, 24, dtype=np.float32))
    folded = fold.input_bias(sae)
    assert not folded.b_in.any()
    close(plain.outputs(folded, X), plain.outputs(sae, X))
    with pytest.raises(BadInput, match="ProLU's bias"):
        fold.input_bias(random_sae("prolu_ste"))


@pytest.mark.parametrize("family", ["relu", "batch_topk", "prolu_relu", "prolu_ste", "jumprelu"])
def test_as_jumprelu(family):
    sae = random_sae(family)
    folded = fold.as_jumprelu(sae)
    assert folded.spec.activation == "jumprelu"
    close(plain.outputs(folded, X), plain.outputs(sae, X), 1e-14)
    with pytest.raises(BadInput, match="gated cannot be written as JumpReLU"):
        fold.as_jumprelu(random_sae("gated"))


def test_rows_that_are_normalised_where_they_are_used():
    sae = random_sae("relu", decoder="normalised", seed=4)
    folded = fold.decoder_as_used(sae)
    close(plain.outputs(folded, X), plain.outputs(sae, X))
    assert folded.spec.decoder == "unit_norm" and fold.are_one(fold.row_norms(sae))


@pytest.mark.skipif("scale_out" not in {f.name for f in fields(SAE)}, reason="transcoders have no units yet")
@pytest.mark.parametrize("b_in", [None, np.linspace(-1, 1, 24, dtype=np.float32)])
def test_the_unit_of_a_transcoders_output(b_in):
    sae = random_sae("relu", transcoder=True, scale_out=np.array([2.5], np.float32), **skip()).replace(b_in=b_in)
    folded = fold.output_scale(sae)
    assert folded.scale_out is None and folded.b_in is not None
    close(plain.outputs(folded, X), plain.outputs(sae, X))
