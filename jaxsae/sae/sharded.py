"""The autoencoder over a mesh: the one place where shard_map surrounds it. B tokens, d width, n latents.

Arguments and results are global arrays: tokens [B@data, d], weights [n@latent, d].
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.sae import activation_functions, auxk
from jaxsae.sae.activation_functions.options import Options
from jaxsae.sae.forward import preacts_of, reconstruct, skip_of, values_of
from jaxsae.sae.layout import DATA, LATENT, LATENTS, REPLICATED, TOKENS, Layout
from jaxsae.sae.select import EXACT, Selection, ranks, support
from jaxsae.sae.types import SAE, partition_specs
from jaxsae.sae.views import view_masks, view_weights

# A support has a token axis and, slot by slot, parts from every shard of the latents.
SLOTS = P(DATA, LATENT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """What the autoencoder makes of a batch, in normalised units. What was not asked for is None."""

    views: tuple  # [B@data, d] each: the reconstruction, and further ones that training compares with y
    l0: Any  # [B@data] latents with a value above 0
    fired: Any  # [n@latent] tokens on which each latent had one
    min_active: Any = None  # the smallest value above 0
    penalty: Any = None  # [B@data] the sparsity term, summed over latents
    gate_xhat: Any = None  # [B@data, d] an auxiliary reconstruction of x, whose decoder gets no gradient
    ehat: Any = None  # [B@data, d] what AuxK's dead latents make of the residual
    counts: Any = None  # {metric: [B@data]} which tokens the activation function counts
    weights: tuple = field(default=(1.0,), metadata={"static": True})  # of the views

    @property
    def xhat(self):
        return self.views[0]


WHERE = dict.fromkeys(("views", "l0", "penalty", "gate_xhat", "ehat", "counts"), TOKENS)
WHERE |= {"fired": LATENTS, "min_active": REPLICATED}


def choose(sae: SAE, x, selection: Selection = EXACT, training: bool = False, k=None):
    """The support of normalised x [B@data, d]; it carries no gradient, so it is made once for all that use it.

    `k`: latents kept per token, traced, if they are fewer than the spec says.
    """
    local = lambda layout, sae, x, k: support(sae, x, layout, selection, training, k)
    return over_mesh(local, (partition_specs(sae), TOKENS, REPLICATED), SLOTS)(sae, x, k)


def autoencode(
    sae: SAE, x, chosen, options: Options | None = None, dead=None, k_aux: int = 0, memory: int = EXACT.memory
) -> Output:
    """Normalised x [B@data, d] through the latents `chosen` by `choose`.

    `options` turn on what only training needs; `dead` [n@latent] turns AuxK's part on, with `k_aux` latents a token.
    """
    family = activation_functions.get(sae.spec.activation)
    penalty = _penalty(family, options)
    weights = view_weights(sae, family) if options else (1.0,)
    wanted = ["views", "l0", "fired"]
    wanted += ["min_active"] if options and family.update_extra else []
    wanted += ["penalty"] if penalty else []
    wanted += ["gate_xhat"] if options and family.gate_values else []
    wanted += ["counts"] if options and family.counts else []
    wanted += [] if dead is None else ["ehat"]

    def local(layout, sae, x, chosen, dead):
        sae, ehat = sae.as_used(), None
        if dead is not None:
            with jax.named_scope("auxk"):
                ehat, sae = auxk.dead_code(sae, x, dead, k_aux, layout, memory)
        with jax.named_scope("values"):
            preacts = preacts_of(sae, x, chosen, layout)
            v = values_of(sae, preacts, chosen, options)
        # Once for all views: each use of a replicated array would sum its own gradient over `data`.
        sae = sae.replace(W_dec=layout.pvary(sae.W_dec)[0])
        skip = skip_of(sae, x)
        masks = view_masks(sae, family, chosen, layout) if len(weights) > 1 else (True,)
        active = (v > 0) & masks[0]
        make = {
            "views": lambda: tuple(reconstruct(sae, jnp.where(mask, v, 0), chosen, layout, skip) for mask in masks),
            "l0": lambda: layout.sum_latents(active.astype(jnp.int32).sum(1)),
            "fired": lambda: layout.sum_tokens(
                chosen.count(active, *layout.pvary(jnp.zeros_like(sae.b_enc, jnp.int32)))
            ),
            "min_active": lambda: layout.min_all(
                lax.stop_gradient(jnp.where(active, v * ranks(sae.spec, preacts.norms), jnp.inf).min())
            ),
            "penalty": lambda: penalty.finish(layout.sum_latents(penalty.each(v, preacts, options).sum(1)), options),
            "gate_xhat": lambda: reconstruct(
                lax.stop_gradient(sae), family.gate_values(preacts), chosen, layout, lax.stop_gradient(skip)
            ),
            "counts": lambda: {
                name: count.each(*layout.pvary(lax.stop_gradient(chosen)), sae.spec, layout)
                for name, count in family.counts.items()
            },
            "ehat": lambda: ehat,
        }
        with jax.named_scope("decode"):
            return {name: make[name]() for name in wanted}

    specs = partition_specs(sae), TOKENS, SLOTS, LATENTS
    where = {name: WHERE[name] for name in wanted}
    return Output(**over_mesh(local, specs, where)(sae, x, chosen, dead), weights=weights)


def _penalty(family, options: Options | None):
    if options is None or not family.penalties:
        return None
    return family.penalties[options.sparsity.penalty or next(iter(family.penalties))]


def over_mesh(local: Callable, in_specs: tuple, out_specs) -> Callable:
    """local(layout, *args) on every device of the mesh that is set; arguments and results are global arrays."""
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
