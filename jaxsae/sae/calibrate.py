"""What is fitted to a sample of activations before training: used by initialisation only. B tokens, d width."""

import math
from functools import partial

import jax
import jax.numpy as jnp

from jaxsae.sae import activation_functions
from jaxsae.sae.activation_functions.options import Options
from jaxsae.sae.forward import preacts_of, reconstruct, skip_of, values_of
from jaxsae.sae.layout import REPLICATED, Layout
from jaxsae.sae.select import EXACT, Selection, support
from jaxsae.sae.sharded import autoencode, choose, over_mesh
from jaxsae.sae.types import SAE, partition_specs


def reconstruct_replicated(sae: SAE, x, selection: Selection = EXACT):
    """Reconstruction [B, d] of x [B, d] that every device holds whole."""

    def local(layout, sae, x):
        layout = Layout(None, layout.latent)
        sae = sae.as_used()
        chosen = support(sae, x, layout, selection, training=True)
        v = values_of(sae, preacts_of(sae, x, chosen, layout), chosen)
        return reconstruct(sae, v, chosen, layout, skip_of(sae, x))

    return over_mesh(local, (partition_specs(sae), REPLICATED), REPLICATED)(sae, x)


def calibrate_threshold(sae: SAE, x, l0: float, selection: Selection = EXACT) -> SAE:
    """The same weights with one threshold for all latents, above which `l0` (rounded up) per token of x are active.

    Normalised x [B@data, d]; for activation functions that have thresholds. It is the one that BatchTopK would find.
    """
    spec = sae.spec.replace(activation="batch_topk", k=math.ceil(l0), prefixes=(), sections=1)
    same = sae.replace(spec=spec, extra={"threshold": jnp.zeros_like(sae.b_enc)})
    threshold = autoencode(same, x, choose(same, x, selection, training=True), Options()).min_active
    extra = activation_functions.get(sae.spec.activation).from_threshold(jnp.full_like(sae.b_enc, threshold))
    # If no pre-activation is positive there is no threshold to be found.
    return sae.replace(extra=jax.tree.map(partial(jnp.where, jnp.isfinite(threshold)), extra, sae.extra))
