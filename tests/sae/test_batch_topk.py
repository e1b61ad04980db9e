"""BatchTopK's bound on the latents of a token: what it leaves out is counted, and the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.distributed.mesh import make_mesh, shardings
from jaxsae.sae.layout import TOKENS
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import partition_specs
from tests import configs
from tests.programs import local_gradient
from tests.sae import dense


def same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), a, b)


def uneven(k=1, tokens=32):
    """A BatchTopK with 64 latents, and tokens of which one is so large that it asks for half of them."""
    c = configs.sae(64, k, activation="batch_topk", normalise="none")
    sae = dense.random_sae(jax.random.key(0), 64, 12, c.spec(), jnp.float64)
    sae = sae.replace(extra={"threshold": jnp.full(64, 0.1)})
    x = jax.random.normal(jax.random.key(1), (tokens, 12), jnp.float64).at[17].multiply(40)
    return c, sae, np.asarray(x)


def kept_by_numpy(z, k, cap):
    """BatchTopK of z [B, n] with at most `cap` latents a token, and which tokens that takes latents from."""
    own = np.where(z >= np.sort(z, 1)[:, -cap, None], np.maximum(z, 0), 0)
    smallest = np.sort(own, axis=None)[-k * len(z)]
    kept = np.where((own > 0) & (own >= smallest), own, 0)
    return kept, ((z > 0) & (z >= smallest)).sum(1) > cap


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4), (1, 8)], ids=str)
def test_a_token_that_batch_topk_caps_is_counted_on_every_mesh(x64, mesh):
    c, sae, x = uneven()
    z = (x - np.asarray(sae.input_bias())) @ np.asarray(sae.W_enc).T + np.asarray(sae.b_enc)
    kept, capped = kept_by_numpy(z, 1, 16)
    assert capped.sum() == 1 and (kept > 0).sum(1).max() == 16 and (kept > 0).sum() == 32
    training = configs.training(batch_size=len(x))
    grads, metrics, fired, least = local_gradient(mesh, c, training, 8, sae, (x,), jnp.zeros(64, bool), (1.0, 0.0, 0.0))
    np.testing.assert_allclose(metrics["capped_tokens"], 1 / 32)
    np.testing.assert_array_equal(fired, (kept > 0).sum(0))
    np.testing.assert_allclose(least, kept[kept > 0].min(), rtol=1e-12)
    with jax.set_mesh(make_mesh(1, 1)):
        want = jax.grad(lambda sae: jnp.square(reconstructed_densely(sae, x, kept > 0) - x).mean())(sae)
    same(grads, want)


def reconstructed_densely(sae, x, mask):
    z = (x - sae.input_bias()) @ sae.W_enc.T + sae.b_enc
    return jnp.where(mask, z, 0) @ sae.W_dec + sae.b_dec


def test_no_token_is_capped_if_all_ask_for_as_many_latents_as_they_may(x64):
    c, sae, x = uneven(k=8)
    run = local_gradient((2, 4), c, configs.training(batch_size=32), 8, sae, (x,), jnp.zeros(64, bool), (1.0, 0.0, 0.0))
    assert run[1]["capped_tokens"] == 0


def test_the_cap_of_batch_topk_does_not_depend_on_the_mesh_outside_training(x64):
    _, sae, x = uneven()
    codes = {}
    for shape in ((1, 1), (2, 4)):
        mesh = make_mesh(*shape)
        with jax.set_mesh(mesh):
            placed = jax.device_put((sae, x), shardings(mesh, (partition_specs(sae), TOKENS)))
            out = autoencode(*placed, choose(*placed))
        codes[shape] = out.l0, out.xhat
    assert codes[1, 1][0].max() == 16 == jaxsae.encode(sae, x).values.shape[-1]
    same(codes[2, 4], codes[1, 1])
