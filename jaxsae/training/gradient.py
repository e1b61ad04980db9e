"""The loss of a batch and its gradient, in one piece or in several. B tokens, d width, n latents, M pieces.

The latents that tokens use are chosen first, without gradient; then comes the gradient of what is left. In pieces it
is the same: each piece's share of the loss is that of the whole batch, AuxK's denominator included, and the gradients
add up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.sae.auxk import auxk_loss
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.training import objectives
from jaxsae.training.config import SAEConfig, TrainingConfig, check_pieces


@partial(jax.tree_util.register_dataclass, data_fields=["mse_scale", "auxk", "sparsity"], meta_fields=[])
@dataclass(frozen=True)
class Coefficients:
    """Weights of the parts of the loss; traced, so runs of one compiled step may differ in them."""

    mse_scale: Any  # of squared errors
    auxk: Any
    sparsity: Any  # of the penalty


def make_gradient(sae: SAEConfig, training: TrainingConfig, k_aux: int) -> Callable:
    """gradient(params, batch, dead, coefficients) -> (gradient, metrics, firing counts [n@latent], least).

    `batch` is a pair of normalised arrays [B@data, d], what goes in and what should come out; `dead` [n@latent] marks
    the latents that AuxK may use; `least` is the smallest value above 0, for families that want to know.
    """
    check_pieces(sae, training)
    fidelity, how, pieces = objectives.get(training.objective), sae.selection(), training.micro_batches

    def loss(params, batch, chosen, weigh: Coefficients, dead=None, variance=None):
        """A piece's share of the loss of the batch; AuxK's part of it where there are `dead`."""
        x, y = batch
        out = autoencode(params, x, chosen, how, sae.terms(), dead, k_aux)
        value, metrics = fidelity(out.xhat, y, weigh.mse_scale)
        total = out.weights[0] * value
        for weight, xhat in zip(out.weights[1:], out.views[1:]):
            total += weight * fidelity(xhat, y, weigh.mse_scale)[0]
        if out.frozen is not None:
            # Always held against the input, whatever the objective.
            total += objectives.local(out.frozen, x, weigh.mse_scale)[0]
        if out.penalty is not None:
            mean = out.penalty.mean()
            # The mean over d, as errors are.
            penalty = mean / x.shape[1] if sae.target_l0 is None else (mean / sae.target_l0 - 1) ** 2
            metrics |= {"penalty": penalty}
            total += weigh.sparsity * penalty
        metrics |= {"error": jnp.mean((y - out.xhat) ** 2), "l0": out.l0.mean()}
        total, metrics = total / pieces, {name: part / pieces for name, part in metrics.items()}
        aux = jnp.zeros_like(total)
        if dead is not None:
            aux = auxk_loss(y - out.xhat, out.ehat, variance)
            total = total + weigh.auxk * aux
        return total, (metrics | {"loss": total, "auxk": aux}, out.fired, out.least)

    derivative = jax.grad(loss, has_aux=True)

    def whole(params, batch, dead, weigh):
        chosen = choose(params, batch[0], how, training=True)
        without = lambda dead: derivative(params, batch, chosen, weigh)
        with_auxk = lambda dead: derivative(params, batch, chosen, weigh, dead)
        return _if_dead(dead, weigh, with_auxk, without)

    def in_pieces(params, batch, dead, weigh):
        batch = jax.tree.map(lambda a: _split(a, pieces), batch)
        chosen = lax.map(lambda x: choose(params, x, how, training=True), batch[0])

        def error(piece):
            (x, y), chosen = piece
            return y - autoencode(params, x, chosen, how, sae.terms()).xhat

        def total(dead, *auxk):
            def add(carry, piece):
                grads, fired = carry
                part, (metrics, more, _) = derivative(params, *piece, weigh, *auxk)
                return (jax.tree.map(jnp.add, grads, part), fired + more), metrics

            nothing = jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(dead, jnp.int32)
            (grads, fired), metrics = lax.scan(add, nothing, (batch, chosen))
            # What families observe, they observe in whole batches only.
            return grads, (jax.tree.map(lambda m: m.sum(0), metrics), fired, None)

        def with_auxk(dead):
            e = lax.map(error, (batch, chosen))
            return total(dead, dead, ((e - e.mean((0, 1))) ** 2).sum())

        return _if_dead(dead, weigh, with_auxk, total)

    def gradient(params, batch, dead, weigh: Coefficients):
        grads, (metrics, fired, least) = (whole if pieces == 1 else in_pieces)(params, batch, dead, weigh)
        y = batch[1]
        return grads, metrics | {"nmse": metrics.pop("error") / jnp.mean((y - y.mean(0)) ** 2)}, fired, least

    return gradient


def _if_dead(dead, weigh: Coefficients, with_auxk: Callable, without: Callable):
    """The choice is around the whole gradient: where nothing is dead or AuxK is off, not even zeros are added.

    It is also a fence: without one XLA copies the weights, lest the optimizer change them while a loop reads them.
    """
    return lax.cond(dead.any() & (weigh.auxk > 0), with_auxk, without, dead)


def _split(a, pieces: int):
    """[B@data, d] -> [pieces, B / pieces @data, d]: every device splits its own rows."""
    local = lambda a: a.reshape(pieces, -1, *a.shape[1:])
    return jax.shard_map(local, in_specs=P("data"), out_specs=P(None, "data"))(a)
