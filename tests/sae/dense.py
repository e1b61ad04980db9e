"""The plain reference: a TopK autoencoder as dense code that AD differentiates. B tokens, d width, n latents."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.distributed.mesh import shardings
from jaxsae.sae.layout import LATENTS, TOKENS
from jaxsae.sae.types import SAE, partition_specs


def top_mask(z, k):
    """Which entries of each row of z [B, n] are among its k largest; ties to the lower index."""
    i = lax.top_k(lax.stop_gradient(z), k)[1]
    return jnp.zeros(z.shape, bool).at[jnp.arange(len(z))[:, None], i].set(True)


def code(sae, x):
    z = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    return jnp.where(top_mask(z, sae.spec.k), jax.nn.relu(z), 0)


def reconstruct(sae, z):
    return z @ sae.W_dec + sae.b_dec


def aux_loss(sae, x, e, dead, k_aux):
    z = jnp.where(dead, (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc, -jnp.inf)
    z = jnp.where(top_mask(z, min(k_aux, z.shape[1])) & (z > 0), z, 0)
    return ((e - z @ sae.W_dec) ** 2).mean() / ((e - e.mean(0)) ** 2).mean()


def loss(sae, x, dead, mse_scale, auxk_coef, k_aux):
    xhat = reconstruct(sae, code(sae, x))
    total = mse_scale * ((xhat - x) ** 2).mean()
    e = lax.stop_gradient(x - xhat)
    return total + (auxk_coef * aux_loss(sae, x, e, dead, k_aux) if dead.any() else 0)


def random_sae(key, n, d, spec, dtype):
    a, b, c, e = jax.random.split(key, 4)
    W_dec = jax.random.normal(c, (n, d), dtype)
    W_dec = W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True)
    return SAE(
        W_dec + 0.3 * jax.random.normal(a, (n, d), dtype),
        0.1 * jax.random.normal(b, (n,), dtype),
        W_dec,
        0.1 * jax.random.normal(e, (d,), dtype),
        spec,
    )


def placed(mesh, sae, x, dead):
    """An autoencoder, tokens and a mask of latents laid out on a mesh."""
    put = lambda tree, specs: jax.device_put(tree, shardings(mesh, specs))
    return put(sae, partition_specs(sae)), put(x, TOKENS), put(dead, LATENTS)
