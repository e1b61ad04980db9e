"""The autoencoder over a mesh: the one place where shard_map surrounds it. B tokens, d width, n latents.

Arguments and results are global arrays: tokens [B@data, d], weights [n@latent, d].
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxsae.precision import Products
from jaxsae.sae.auxk import auxk_loss
from jaxsae.sae.forward import reconstruct, sparse_code
from jaxsae.sae.layout import EVERYWHERE, LATENTS, SHARDED, TOKENS, Layout
from jaxsae.sae.struct import SAE, partition_specs


def autoencode(sae: SAE, x, select: Products = "float32"):
    """Normalised x [B@data, d] -> reconstruction [B@data, d], L0 of each token [B@data], firing counts [n@latent]."""

    def local(sae, x):
        v, i = sparse_code(sae, x, SHARDED, select)
        active = v > 0
        fired = jnp.zeros_like(sae.b_enc, jnp.int32).at[i].add(active.astype(jnp.int32))
        return reconstruct(sae, v, i, SHARDED), SHARDED.sum_latents(active.sum(1)), SHARDED.sum_tokens(fired)

    specs = partition_specs(sae), TOKENS
    return jax.shard_map(local, in_specs=specs, out_specs=(TOKENS, TOKENS, LATENTS))(sae, x)


def dead_loss(sae: SAE, x, error, dead, k_aux: int):
    """AuxK of x and error [B@data, d] over the latents that `dead` [n@latent] marks -> scalar."""
    auxk = partial(auxk_loss, k_aux=k_aux, layout=SHARDED)
    specs = partition_specs(sae), TOKENS, TOKENS, LATENTS
    return jax.shard_map(auxk, in_specs=specs, out_specs=EVERYWHERE)(sae, x, error, dead)


def reconstruct_copies(sae: SAE, x, select: Products = "float32"):
    """Reconstruction [B, d] of x [B, d] that every device holds whole (for initialisation, before there is data)."""
    layout = Layout(None, SHARDED.latent)

    def local(sae, x):
        return reconstruct(sae, *sparse_code(sae, x, layout, select), layout)

    return jax.shard_map(local, in_specs=(partition_specs(sae), EVERYWHERE), out_specs=EVERYWHERE)(sae, x)
