"""The autoencoder over a mesh: the one place where shard_map surrounds it. B tokens, d width, n latents.

Arguments and results are global arrays: tokens [B@data, d], weights [n@latent, d].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxsae.sae import auxk
from jaxsae.sae.activations.interface import Support
from jaxsae.sae.forward import reconstruct, sparse_code
from jaxsae.sae.layout import DATA, EVERYWHERE, LATENT, LATENTS, TOKENS, Layout
from jaxsae.sae.select import EXACT, Selection, support
from jaxsae.sae.struct import SAE, partition_specs

# A support has a token axis and, slot by slot, parts from every shard of the latents.
CHOSEN = P(DATA, LATENT)


@partial(jax.tree_util.register_dataclass, data_fields=["xhat", "l0", "fired", "ehat"], meta_fields=[])
@dataclass(frozen=True)
class Output:
    """What the autoencoder makes of a batch, in normalised units."""

    xhat: Any  # [B@data, d] reconstruction
    l0: Any  # [B@data] latents with a value above 0
    fired: Any  # [n@latent] tokens on which each latent had one
    ehat: Any = None  # [B@data, d] what AuxK's dead latents make of it, where they are asked for


def choose(sae: SAE, x, how: Selection = EXACT) -> Support:
    """The support of normalised x [B@data, d]; it carries no gradient, so it is made once for all that uses it."""
    local = lambda layout, sae, x: support(sae, x, layout, how)
    return _over_mesh(local, (partition_specs(sae), TOKENS), CHOSEN)(sae, x)


def autoencode(sae: SAE, x, chosen: Support, how: Selection = EXACT, dead=None, k_aux: int = 0) -> Output:
    """Normalised x [B@data, d] through the latents that `choose` gave; `dead` [n@latent] turns AuxK's part on."""

    def local(layout, sae, x, chosen, dead=None):
        ehat = None
        if dead is not None:
            ehat, sae = auxk.dead_code(sae, x, dead, k_aux, layout, how.memory)
        v = sparse_code(sae, x, chosen, layout, exact=how.products == "float32")
        active = v > 0
        fired = jnp.zeros_like(sae.b_enc, jnp.int32).at[chosen.indices].add(active.astype(jnp.int32))
        xhat = reconstruct(sae, v, chosen.indices, chosen.mask, layout)
        return Output(xhat, layout.sum_latents(active.sum(1)), layout.sum_tokens(fired), ehat)

    args = (sae, x, chosen) if dead is None else (sae, x, chosen, dead)
    specs = (partition_specs(sae), TOKENS, CHOSEN, LATENTS)[: len(args)]
    out = Output(TOKENS, TOKENS, LATENTS, None if dead is None else TOKENS)
    return _over_mesh(local, specs, out)(*args)


def reconstruct_copies(sae: SAE, x, how: Selection = EXACT):
    """Reconstruction [B, d] of x [B, d] that every device holds whole (for initialisation, before there is data)."""

    def local(layout, sae, x):
        layout = Layout(None, layout.latent)
        chosen = support(sae, x, layout, how)
        return reconstruct(sae, sparse_code(sae, x, chosen, layout), chosen.indices, chosen.mask, layout)

    return _over_mesh(local, (partition_specs(sae), EVERYWHERE), EVERYWHERE)(sae, x)


def _over_mesh(local: Callable, in_specs: tuple, out_specs) -> Callable:
    """local(layout, *args) on every device of the mesh around it."""
    # Axes of one device are left out: XLA:CPU keeps their collectives, each a copy of its operand.
    shape = jax.sharding.get_abstract_mesh().shape
    kept = {axis for axis in (DATA, LATENT) if shape[axis] > 1}
    layout = Layout(*(axis if axis in kept else None for axis in (DATA, LATENT)))
    strip = lambda specs: jax.tree.map(lambda spec: P(*(axis if axis in kept else None for axis in spec)), specs)
    put = lambda specs, args: jax.tree.map(lambda s, part: jax.tree.map(lambda a: jax.reshard(a, s), part), specs, args)
    inside = partial(local, layout)
    if kept:
        inside = jax.shard_map(inside, in_specs=strip(in_specs), out_specs=strip(out_specs))
    return lambda *args: put(out_specs, inside(*put(strip(in_specs), args)))
