"""The optimizer of Gao et al. 2024, app. A.3 and A.5, from optax parts. n latents, d width.

project the decoder's gradient -> Adam (eps 6.25e-10) -> learning rate -> renormalise the decoder; then an average of
the weights (EMA) with Adam's bias correction.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxsae.sae import activation_functions
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.decoder import KINDS, unit_rows
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig


def make_optimizer(sae: SAEConfig, training: TrainingConfig) -> optax.GradientTransformationExtraArgs:
    """Adam with what the decoder's kind asks for around it; `update` takes the learning rate as `lr=` (traced)."""
    family, options = activation_functions.get(sae.activation), sae.options()
    adam = optax.scale_by_adam(0.9, 0.999, training.optimizer.adam_eps)
    rate = scale_by_learning_rate(family.lr_multipliers(options.own))
    if KINDS[sae.decoder].constrained:
        return optax.chain(project_decoder_gradient(), adam, rate, renormalise_decoder())
    return optax.chain(adam, rate)


def lr_factor(training: TrainingConfig) -> Callable:
    """factor(step) of the learning rate: from 0 over the warm-up, then by the schedule to its end."""
    rise, end = training.optimizer.warmup // training.batch.batch_size, training.optimizer.lr_end
    fall = max(1, training.steps - rise)
    schedules = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, fall, end),
        "linear": optax.linear_schedule(1.0, end, fall),
    }
    factor = schedules[training.optimizer.schedule]
    if rise:
        factor = optax.join_schedules([optax.linear_schedule(0.0, 1.0, rise), factor], [rise])
    # In float64 if that is enabled; of an int32 optax would make float32.
    return lambda step: factor(step.astype(jnp.result_type(float)))


def project_decoder_gradient() -> optax.GradientTransformation:
    """Remove from each decoder row's gradient its part along that (unit) row: it only fights the renormalisation."""

    def update(grads: SAE, state, params: SAE):
        W, g = params.W_dec, grads.W_dec
        return grads.replace(W_dec=g - (g * W).sum(-1, keepdims=True) * W), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_learning_rate(multipliers) -> optax.GradientTransformationExtraArgs:
    """Minus the learning rate, given to each update as `lr=`; {name: factor} on it for extra arrays."""

    def update(updates, state, params=None, *, lr, **rest):
        del params, rest
        updates = jax.tree.map(lambda u: -lr * u, updates)
        extra = {name: multipliers.get(name, 1) * u for name, u in updates.extra.items()}
        return updates.replace(extra=extra), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def renormalise_decoder() -> optax.GradientTransformation:
    """Change the update so that the decoder rows that it leads to have norm 1. W_enc is not rescaled."""

    def update(updates: SAE, state, params: SAE):
        return updates.replace(W_dec=unit_rows(params.W_dec + updates.W_dec) - params.W_dec), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def norm(grads):
    """The norm of all gradients together."""
    # After a barrier, because XLA would write out squares that Adam needs too: an array as large as a gradient.
    squares = lambda g: (jax.lax.optimization_barrier(g) ** 2).sum()
    return jnp.sqrt(sum(squares(g) for g in jax.tree.leaves(grads)))


def clip(grads, size, bound: float | None):
    """Gradients whose norm is `size`, scaled down to norm `bound` if that is less."""
    return grads if bound is None else jax.tree.map(lambda g: g * jnp.minimum(1, bound / (size + 1e-6)), grads)


def ema_update(ema: SAE, params: SAE, decay: float) -> SAE:
    """ema + (1 - decay) (params - ema), started from zeros (app. A.5)."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
