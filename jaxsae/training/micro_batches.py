"""The gradient of a batch computed in parts, to save memory: the same, to rounding.

The share of each part is that of the whole batch, AuxK's denominator included, and the gradients add up. Arrays of a
prepared batch have a leading axis of parts.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.sae.config import SAEConfig
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig, check_micro_batches
from jaxsae.training.objectives import Batch, Objective
from jaxsae.training.records import Seen, Whole


def prepare(objective: Objective, parts: int, batch, lm, scale_out=None) -> Batch:
    """What `objective` prepares from each part of a batch."""
    return lax.map(lambda part: objective.prepare(part, lm, scale_out), split(batch, parts))


def make_gradient(
    derivative: Callable, sae: SAEConfig, training: TrainingConfig, objective: Objective, maybe_with_auxk: Callable
) -> Callable:
    """gradient(params, batches, dead, hyper, lm) -> (gradient, (metrics, Seen)), as gradient.py has it of the whole.

    `derivative` is that of one part's share of the loss. Raises BadInput if the loss is not the sum of its parts.
    """
    check_micro_batches(sae, training)

    def gradient(params: SAE, batches: Batch, dead, hyper, lm):
        chosen = lax.map(lambda x: choose(params, x, sae.selection(), training=True, k=hyper.k), batches.x)
        forward = lambda part: autoencode(params, part[0].x, part[1], sae.options())
        whole = Whole(objective.variances(batches))
        if objective.needs_batch_terms:
            terms = lambda view, batch: objective.terms(view, batch, lm, hyper.mse_scale, whole.variances)
            of_part = lambda part: [terms(view, part[0]) for view in forward(part).views]
            whole = whole._replace(terms=jax.tree.map(lambda term: term.mean(0), lax.map(of_part, (batches, chosen))))

        def accumulate(whole: Whole, *dead):
            def add(carry, part):
                new, (metrics, seen) = derivative(params, *part, hyper, lm, whole, *dead)
                return jax.tree.map(jnp.add, carry, (new, seen.fired)), metrics

            zeros = jax.tree.map(jnp.zeros_like, (params, params.b_enc.astype(jnp.int32)))
            (grads, fired), metrics = lax.scan(add, zeros, (batches, chosen))
            # Families that use `min_active` couple the batch, and were refused.
            return grads, (jax.tree.map(lambda m: m.sum(0), metrics), Seen(fired, None))

        def with_auxk(dead):
            residual = lax.map(lambda part: part[0].y - forward(part).xhat, (batches, chosen))
            total = ((residual - residual.mean((0, 1))) ** 2).sum()
            return accumulate(whole._replace(residual_variance=total), dead)

        return maybe_with_auxk(dead, hyper, with_auxk, lambda dead: accumulate(whole))

    return gradient


def split(batch, parts: int):
    """Arrays [B@data, ...] -> [parts, B / parts @data, ...]: every device splits its own rows."""
    local = lambda a: a.reshape(parts, -1, *a.shape[1:])
    return jax.shard_map(partial(jax.tree.map, local), in_specs=P("data"), out_specs=P(None, "data"))(batch)


def join(parts):
    """The inverse of `split`: arrays [parts, B / parts @data, ...] -> [B@data, ...]."""
    local = lambda a: a.reshape(-1, *a.shape[2:])
    return jax.shard_map(partial(jax.tree.map, local), in_specs=P(None, "data"), out_specs=P("data"))(parts)
