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
from jaxsae.training.config import SAEConfig, TrainingConfig, check_pieces
from jaxsae.training.objectives import LOCAL, Objective, squared_error


@partial(jax.tree_util.register_dataclass, data_fields=["mse_scale", "auxk", "sparsity"], meta_fields=[])
@dataclass(frozen=True)
class Coefficients:
    """Weights of the parts of the loss; traced, so runs of one compiled step may differ in them."""

    mse_scale: Any  # of squared errors
    auxk: Any
    sparsity: Any  # of the penalty


def make_gradient(sae: SAEConfig, training: TrainingConfig, k_aux: int, objective: Objective = LOCAL) -> Callable:
    """gradient(params, batch, dead, coefficients, lm) -> (gradient, metrics, firing counts [n@latent], least).

    `batch` is what the objective prepares: a pair of normalised arrays [B@data, d], what goes in and what should come
    out, or token ids [b@data, T] for the language model `lm`; `dead` [n@latent] marks the latents that AuxK may use;
    `least` is the smallest value above 0, for families that want to know.
    """
    check_pieces(sae, training)
    how, pieces = sae.selection(), training.micro_batches
    # The branch is kept wherever it is cheap to compile.
    with_aux = not objective.end_to_end or training.auxk_weight(sae.activation) > 0

    def parts_of(out, task, lm, weigh, units):
        """What the objective sees of each view."""
        return tuple(objective.parts(xhat, task, lm, weigh.mse_scale, units) for xhat in out.views)

    def loss(params, task, chosen, weigh: Coefficients, lm, units, whole=None, dead=None, variance=None):
        """A piece's share of the loss of the batch; AuxK's part of it where there are `dead`.

        `whole`: the objective's parts of the whole batch, where it looks at them and this is not all of it.
        """
        x, y = task.x, task.y
        factor = x.shape[1] if training.form == "paper" else 1
        out = autoencode(params, x, chosen, how, sae.terms(), dead, k_aux)
        parts = parts_of(out, task, lm, weigh, units)
        whole = lax.stop_gradient(parts) if whole is None else whole
        metrics = parts[0]
        total = sum(weight * objective.loss(*view) for weight, *view in zip(out.weights, parts, whole))
        if out.frozen is not None:
            # Always held against the input, whatever the objective.
            total += factor * squared_error(out.frozen, x, weigh.mse_scale)
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

    def either(dead, weigh, with_auxk, without):
        return _if_dead(dead, weigh, with_auxk, without) if with_aux else without(dead)

    def whole(params, task, dead, *rest):
        chosen = choose(params, task.x, how, training=True)
        without = lambda dead: derivative(params, task, chosen, *rest)
        with_auxk = lambda dead: derivative(params, task, chosen, *rest, None, dead)
        return either(dead, rest[0], with_auxk, without)

    def in_pieces(params, tasks, dead, weigh, lm, units):
        chosen = lax.map(lambda x: choose(params, x, how, training=True), tasks.x)
        forward = lambda piece: autoencode(params, piece[0].x, piece[1], how, sae.terms())
        parts = None
        if objective.balanced:
            parts = lax.map(lambda piece: parts_of(forward(piece), piece[0], lm, weigh, units), (tasks, chosen))
            parts = jax.tree.map(lambda part: part.mean(0), parts)

        def total(dead, *auxk):
            def add(carry, piece):
                grads, fired = carry
                part, (metrics, more, _) = derivative(params, *piece, weigh, lm, units, parts, *auxk)
                return (jax.tree.map(jnp.add, grads, part), fired + more), metrics

            nothing = jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(dead, jnp.int32)
            (grads, fired), metrics = lax.scan(add, nothing, (tasks, chosen))
            # What families observe, they observe in whole batches only.
            return grads, (jax.tree.map(lambda m: m.sum(0), metrics), fired, None)

        def with_auxk(dead):
            e = lax.map(lambda piece: piece[0].y - forward(piece).xhat, (tasks, chosen))
            return total(dead, dead, ((e - e.mean((0, 1))) ** 2).sum())

        return either(dead, weigh, with_auxk, total)

    def gradient(params, batch, dead, weigh: Coefficients, lm=None):
        prepare, run = (lambda part: objective.prepare(part, lm)), whole if pieces == 1 else in_pieces
        task = prepare(batch) if pieces == 1 else lax.map(prepare, split(batch, pieces))
        grads, (metrics, fired, least) = run(params, task, dead, weigh, lm, objective.units(task))
        tokens = tuple(range(task.y.ndim - 1))
        variance = jnp.mean((task.y - task.y.mean(tokens)) ** 2)
        return grads, metrics | {"nmse": metrics.pop("error") / variance}, fired, least

    return gradient


def _if_dead(dead, weigh: Coefficients, with_auxk: Callable, without: Callable):
    """The choice is around the whole gradient: where nothing is dead or AuxK is off, not even zeros are added.

    It is also a fence: without one XLA copies the weights, lest the optimizer change them while a loop reads them.
    """
    return lax.cond(dead.any() & (weigh.auxk > 0), with_auxk, without, dead)


def split(batch, pieces: int):
    """Arrays [B@data, ...] -> [pieces, B / pieces @data, ...]: every device splits its own rows."""
    local = lambda a: a.reshape(pieces, -1, *a.shape[1:])
    return jax.shard_map(partial(jax.tree.map, local), in_specs=P("data"), out_specs=P(None, "data"))(batch)


def join(parts):
    """The opposite: arrays [pieces, B / pieces @data, ...] -> [B@data, ...], in the order that they had."""
    local = lambda a: a.reshape(-1, *a.shape[2:])
    return jax.shard_map(partial(jax.tree.map, local), in_specs=P(None, "data"), out_specs=P("data"))(parts)
