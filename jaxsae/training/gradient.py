"""The loss of a batch and its gradient. B tokens, d width, n latents.

The latents that tokens use are chosen first, without gradient; then comes the gradient of what is left.
micro_batches.py computes the same in parts, sites.py that of several autoencoders in series.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.sae.auxk import auxk_loss
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.normalise import variance
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import SAE
from jaxsae.training import micro_batches
from jaxsae.training.config import TrainingConfig
from jaxsae.training.objectives import Batch, Objective, squared_error
from jaxsae.training.records import Hyper, Seen, Whole


def make_loss(sae: SAEConfig, training: TrainingConfig, objective: Objective, k_aux: int) -> Callable:
    """loss(params, batch, chosen, hyper, lm, whole, dead=None, later=()) -> (loss, (metrics, Seen)).

    A micro-batch's share of the batch loss; it includes the AuxK term if `dead` [n@latent] is given. `later`: what
    autoencoders further along do (`Objective.terms`).
    """
    micro = training.batch.micro_batches

    def loss(params: SAE, batch: Batch, chosen, hyper: Hyper, lm, whole: Whole, dead=None, later=()):
        out = autoencode(params, batch.x, chosen, sae.options(), dead, k_aux, sae.selection().memory)
        with jax.named_scope("objective"):
            views = [objective.terms(xhat, batch, lm, hyper.mse_scale, whole.variances, later) for xhat in out.views]
        batch_terms = lax.stop_gradient(views) if whole.terms is None else whole.terms
        total = sum(weight * objective.loss(*pair) for weight, *pair in zip(out.weights, views, batch_terms))
        own, metrics = own_terms(sae, out, batch.y, hyper)
        metrics |= views[0] | {"error": jnp.mean((batch.y - out.xhat) ** 2)}
        total, metrics = jax.tree.map(lambda a: a / micro, (total + own, metrics))
        aux = jnp.zeros_like(total)
        if dead is not None:
            aux = auxk_loss(batch.y - out.xhat, out.ehat, whole.residual_variance)
            total = total + hyper.auxk_coef * aux
        return total, (metrics | {"loss": total, "auxk": aux}, Seen(out.fired, out.min_active))

    return loss


def own_terms(sae: SAEConfig, out, y, hyper: Hyper):
    """The summands of the loss that are of the activation function alone, and their metrics."""
    total, metrics = 0.0, {"l0": out.l0.mean()}
    metrics |= {name: which.mean(dtype=y.dtype) for name, which in (out.counts or {}).items()}
    if out.gate_xhat is not None:
        # Always compared with what should come out, whatever the objective.
        total += squared_error(out.gate_xhat, y, hyper.mse_scale)
    if out.penalty is not None:
        mean, target = out.penalty.mean(), sae.sparsity.target_l0
        # The mean over tokens and d, as errors are; or the distance from the target.
        metrics["penalty"] = mean / y.shape[1] if target is None else (mean / target - 1) ** 2
        total += hyper.sparsity * metrics["penalty"]
    return total, metrics


def make_gradient(sae: SAEConfig, training: TrainingConfig, objective: Objective, k_aux: int) -> Callable:
    """gradient(params, batch, dead, hyper, lm) -> (gradient, metrics, Seen); `batch` is what the objective prepares.

    `dead` [n@latent] marks the latents that AuxK may use.
    """
    derivative = jax.grad(make_loss(sae, training, objective, k_aux), has_aux=True)
    # The branch is kept where it is cheap to compile: it is also a fence.
    has_auxk = not objective.sites or training.auxk_weight(sae.activation) > 0

    def maybe_with_auxk(dead, hyper: Hyper, with_auxk: Callable, without: Callable):
        """The choice is around the whole gradient: if nothing is dead or AuxK is off, not even zeros are added.

        It is also a fence: without one XLA copies the weights, lest the optimizer change them while a loop reads them.
        """
        if not has_auxk:
            return without(dead)
        return lax.cond(dead.any() & (hyper.auxk_coef > 0), with_auxk, without, dead)

    def of_whole(params: SAE, batch: Batch, dead, hyper: Hyper, lm):
        with jax.named_scope("choose"):
            chosen = choose(params, batch.x, sae.selection(), training=True, k=hyper.k)
        run = lambda *dead: derivative(params, batch, chosen, hyper, lm, Whole(objective.variances(batch)), *dead)
        return maybe_with_auxk(dead, hyper, run, lambda dead: run())

    parts = training.batch.micro_batches
    prepare = objective.prepare if parts == 1 else partial(micro_batches.prepare, objective, parts)
    of_parts = micro_batches.make_gradient(derivative, sae, training, objective, maybe_with_auxk)

    def gradient(params: SAE, batch, dead, hyper: Hyper, lm=None):
        with jax.named_scope("prepare"):
            batch = prepare(batch, lm, params.scale_out)
        grads, (metrics, seen) = (of_whole if parts == 1 else of_parts)(params, batch, dead, hyper, lm)
        return grads, metrics | {"nmse": metrics.pop("error") / variance(batch.y)}, seen

    return gradient
