"""The autoencoder over a mesh: the one place where shard_map surrounds it. B tokens, d width, n latents.

Arguments and results are global arrays: tokens [B@data, d], weights [n@latent, d].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.sae import activations, auxk
from jaxsae.sae.activations.interface import PLAIN, Support, Terms
from jaxsae.sae.activations.penalties import PENALTIES
from jaxsae.sae.forward import reconstruct, slots_of, values, with_unit_decoder
from jaxsae.sae.layout import DATA, EVERYWHERE, LATENT, LATENTS, TOKENS, Layout
from jaxsae.sae.select import EXACT, Selection, support
from jaxsae.sae.struct import SAE, partition_specs

# A support has a token axis and, slot by slot, parts from every shard of the latents.
CHOSEN = P(DATA, LATENT)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["views", "l0", "fired", "least", "penalty", "frozen", "ehat"],
    meta_fields=["weights"],
)
@dataclass(frozen=True)
class Output:
    """What the autoencoder makes of a batch, in normalised units. What a family does not have is None."""

    views: tuple  # [B@data, d] each: the reconstruction, and further ones that training holds against the objective
    l0: Any  # [B@data] latents with a value above 0
    fired: Any  # [n@latent] tokens on which each latent had one
    least: Any = None  # the smallest value above 0
    penalty: Any = None  # [B@data] the sparsity term, summed over latents
    frozen: Any = None  # [B@data, d] a reconstruction whose decoder gets no gradient, to be held against the input
    ehat: Any = None  # [B@data, d] what AuxK's dead latents make of it, where they are asked for
    weights: tuple = (1.0,)  # of the views

    @property
    def xhat(self):
        return self.views[0]


def choose(sae: SAE, x, how: Selection = EXACT, training: bool = False) -> Support | None:
    """The support of normalised x [B@data, d]; it carries no gradient, so it is made once for all that uses it.

    None for a dense family.
    """
    if activations.get(sae.spec.activation).support is None:
        return None
    local = lambda layout, sae, x: support(sae, x, layout, how, training)
    return _over_mesh(local, (partition_specs(sae), TOKENS), CHOSEN)(sae, x)


def autoencode(
    sae: SAE,
    x,
    chosen: Support | None,
    how: Selection = EXACT,
    terms: Terms | None = None,
    dead=None,
    k_aux: int = 0,
) -> Output:
    """Normalised x [B@data, d] through the latents that `choose` gave.

    `terms` turns on what only training needs; `dead` [n@latent] turns AuxK's part on.
    """
    act = activations.get(sae.spec.activation)
    weights = _weights(sae, act) if terms else (1.0,)

    def local(layout, sae, x, chosen=None, dead=None):
        sae, ehat = with_unit_decoder(sae), None
        if dead is not None:
            ehat, sae = auxk.dead_code(sae, x, dead, k_aux, layout, how.memory)
        slots = slots_of(sae, x, chosen, layout, exact=how.products == "float32")
        v = values(sae, slots, chosen, terms or PLAIN)
        masks = _masks(sae, act, v, chosen, layout) if len(weights) > 1 else (True,)
        of_view = lambda mask: reconstruct(sae, jnp.where(mask, v, 0), chosen, layout)
        active = (v > 0) & masks[0]
        count = active.astype(jnp.int32)
        (nobody,) = layout.vary(jnp.zeros_like(sae.b_enc, jnp.int32))
        fired = count.sum(0, dtype=jnp.int32) if chosen is None else nobody.at[chosen.indices].add(count)
        return Output(
            views=tuple(map(of_view, masks)),
            l0=layout.sum_latents(count.sum(1)),
            fired=layout.sum_tokens(fired),
            least=_least(v, active, layout) if terms and act.observe else None,
            penalty=_penalty(act, v, slots, terms, layout) if terms and act.penalties else None,
            frozen=_frozen(sae, act.frozen(slots), chosen, layout) if terms and act.frozen else None,
            ehat=ehat,
            weights=weights,
        )

    given = {"chosen": (chosen, CHOSEN), "dead": (dead, LATENTS)}
    given = {name: pair for name, pair in given.items() if pair[0] is not None}
    some = lambda there: TOKENS if there else None
    out = Output(
        (TOKENS,) * len(weights),
        TOKENS,
        LATENTS,
        EVERYWHERE if terms and act.observe else None,
        some(terms and act.penalties),
        some(terms and act.frozen),
        some(dead is not None),
        weights,
    )
    named = lambda layout, sae, x, *rest: local(layout, sae, x, **dict(zip(given, rest)))
    specs = partition_specs(sae), TOKENS, *(spec for _, spec in given.values())
    return _over_mesh(named, specs, out)(sae, x, *(value for value, _ in given.values()))


def _weights(sae: SAE, act) -> tuple:
    """Weights of the views: every view of the activation function at every prefix, all latents first."""
    own = (1.0,) if act.views is None else act.weights
    prefixes = max(1, len(sae.spec.prefixes))
    return tuple(weight / prefixes for weight in own for _ in range(prefixes))


def _masks(sae: SAE, act, v, chosen, layout):
    """Which slots each view has, in the order of `_weights`."""
    own = (True,) if act.views is None else act.views(chosen, sae.spec, layout)
    number = jnp.arange(sae.n) if chosen is None else chosen.indices
    number = number + layout.first_latent(sae.n)
    prefixes = [number < m for m in sae.spec.prefixes[:-1]]
    return tuple(mask & inside for mask in own for inside in (True, *reversed(prefixes)))


def _penalty(act, v, slots, terms, layout):
    penalty = PENALTIES[terms.penalty or act.penalties[0]]
    return penalty.finish(layout.sum_latents(penalty.each(v, slots, terms).sum(1)), terms)


def _least(v, active, layout):
    return layout.least(lax.stop_gradient(jnp.where(active, v, jnp.inf).min()))


def _frozen(sae, v, chosen, layout):
    return reconstruct(lax.stop_gradient(sae), v, chosen, layout)


def reconstruct_copies(sae: SAE, x, how: Selection = EXACT):
    """Reconstruction [B, d] of x [B, d] that every device holds whole (for initialisation, before there is data)."""

    def local(layout, sae, x):
        layout = Layout(None, layout.latent)
        sae = with_unit_decoder(sae)
        chosen = support(sae, x, layout, how, training=True)
        return reconstruct(sae, values(sae, slots_of(sae, x, chosen, layout), chosen), chosen, layout)

    return _over_mesh(local, (partition_specs(sae), EVERYWHERE), EVERYWHERE)(sae, x)


def at_l0(sae: SAE, x, l0: float, how: Selection = EXACT) -> SAE:
    """The same weights with one threshold for all latents, above which `l0` (rounded up) per token of x are active.

    Normalised x [B@data, d]; for activation functions that have thresholds. It is the one that BatchTopK would find.
    """
    spec = sae.spec.replace(activation="batch_topk", k=math.ceil(l0), prefixes=())
    same = sae.replace(spec=spec, extra={"threshold": jnp.zeros_like(sae.b_enc)})
    least = autoencode(same, x, choose(same, x, how, training=True), how, PLAIN).least
    extra = activations.get(sae.spec.activation).above(jnp.full_like(sae.b_enc, least))
    # Where no pre-activation is positive there is none to be found.
    return sae.replace(extra=jax.tree.map(partial(jnp.where, jnp.isfinite(least)), extra, sae.extra))


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
