"""The loss of a batch and its gradient, in one piece or in several. B tokens, d width, n latents, M pieces.

The latents that tokens use are chosen first, without gradient; then comes the gradient of what is left, all of it
sparse. In pieces it is the same: each piece's share of the loss is that of the whole batch, AuxK's denominator
included, and the gradients add up.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.sae.auxk import auxk_loss
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.training import objectives
from jaxsae.training.config import SAEConfig, TrainingConfig


def make_gradient(sae: SAEConfig, training: TrainingConfig, k_aux: int) -> Callable:
    """gradient(params, batch, dead, mse_scale, auxk_coef) -> (gradient, metrics, firing counts [n@latent]).

    `batch` is a pair of normalised arrays [B@data, d], what goes in and what should come out; `dead` [n@latent] marks
    the latents that AuxK may use.
    """
    fidelity, how, pieces = objectives.get(training.objective), sae.selection(), training.micro_batches

    def loss(params, batch, chosen, mse_scale, auxk_coef, dead=None, variance=None):
        """A piece's share of the loss of the batch; AuxK's part of it where there are `dead`."""
        x, y = batch
        out = autoencode(params, x, chosen, how, dead, k_aux)
        value, metrics = fidelity(out.xhat, y, mse_scale)
        metrics |= {"error": jnp.mean((y - out.xhat) ** 2), "l0": out.l0.mean()}
        total, metrics = value / pieces, {name: part / pieces for name, part in metrics.items()}
        aux = jnp.zeros_like(total)
        if dead is not None:
            aux = auxk_loss(y - out.xhat, out.ehat, variance)
            total = total + auxk_coef * aux
        return total, (metrics | {"loss": total, "auxk": aux}, out.fired)

    derivative = jax.grad(loss, has_aux=True)

    def whole(params, batch, dead, *coefficients):
        chosen = choose(params, batch[0], how)
        without = lambda dead: derivative(params, batch, chosen, *coefficients)
        with_auxk = lambda dead: derivative(params, batch, chosen, *coefficients, dead)
        return _if_dead(dead, coefficients, with_auxk, without)

    def in_pieces(params, batch, dead, *coefficients):
        batch = jax.tree.map(lambda a: _split(a, pieces), batch)
        chosen = lax.map(lambda x: choose(params, x, how), batch[0])

        def error(piece):
            (x, y), chosen = piece
            return y - autoencode(params, x, chosen, how).xhat

        def total(dead, *auxk):
            def add(carry, piece):
                grads, fired = carry
                part, (metrics, more) = derivative(params, *piece, *coefficients, *auxk)
                return (jax.tree.map(jnp.add, grads, part), fired + more), metrics

            nothing = jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(dead, jnp.int32)
            (grads, fired), metrics = lax.scan(add, nothing, (batch, chosen))
            return grads, (jax.tree.map(lambda m: m.sum(0), metrics), fired)

        def with_auxk(dead):
            e = lax.map(error, (batch, chosen))
            return total(dead, dead, ((e - e.mean((0, 1))) ** 2).sum())

        return _if_dead(dead, coefficients, with_auxk, total)

    def gradient(params, batch, dead, mse_scale, auxk_coef):
        grads, (metrics, fired) = (whole if pieces == 1 else in_pieces)(params, batch, dead, mse_scale, auxk_coef)
        y = batch[1]
        return grads, metrics | {"nmse": metrics.pop("error") / jnp.mean((y - y.mean(0)) ** 2)}, fired

    return gradient


def _if_dead(dead, coefficients, with_auxk: Callable, without: Callable):
    """The choice is around the whole gradient: where nothing is dead or AuxK is off, not even zeros are added.

    It is also a fence: without one XLA copies the weights, lest the optimizer change them while a loop reads them.
    """
    _, auxk_coef = coefficients
    return lax.cond(dead.any() & (auxk_coef > 0), with_auxk, without, dead)


def _split(a, pieces: int):
    """[B@data, d] -> [pieces, B / pieces @data, d]: every device splits its own rows."""
    local = lambda a: a.reshape(pieces, -1, *a.shape[1:])
    return jax.shard_map(local, in_specs=P("data"), out_specs=P(None, "data"))(a)
