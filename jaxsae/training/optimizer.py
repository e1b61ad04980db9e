"""The optimizer of Gao et al. 2024, app. A.3 and A.5, from optax parts. n latents, d width.

project the decoder's gradient -> Adam (eps 6.25e-10) -> learning rate -> renormalise the decoder; then an average of
the weights (EMA) with Adam's bias correction.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxsae.sae.struct import SAE
from jaxsae.training.config import TrainingConfig


def make_optimizer(decoder: str, beta1=0.9, beta2=0.999, eps=6.25e-10) -> optax.GradientTransformationExtraArgs:
    """For a decoder constraint of `Spec.decoder`; `update` takes the learning rate as `lr=`, so it can be traced."""
    constraint = {"unit_norm": (project_decoder_gradient(), renormalise_decoder()), "free": (), "normalised": ()}[
        decoder
    ]
    before, after = constraint[:1], constraint[1:]
    return optax.chain(*before, optax.scale_by_adam(beta1, beta2, eps), scale_by_learning_rate(), *after)


def lr_factor(training: TrainingConfig) -> Callable:
    """factor(step) of the learning rate: from 0 over the warm-up, then by the schedule to its end."""
    rise, end = training.warmup // training.batch_size, training.lr_end
    fall = max(1, training.steps - rise)
    schedules = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, fall, end),
        "linear": optax.linear_schedule(1.0, end, fall),
    }
    factor = schedules[training.schedule]
    if rise:
        factor = optax.join_schedules([optax.linear_schedule(0.0, 1.0, rise), factor], [rise])
    # As many digits as there are: of an int32 optax would make float32.
    return lambda step: factor(step.astype(jnp.result_type(float)))


def project_decoder_gradient() -> optax.GradientTransformation:
    """Remove from each decoder row's gradient its part along that (unit) row: it only fights the renormalisation."""

    def update(grads: SAE, state, params: SAE):
        W, g = params.W_dec, grads.W_dec
        return grads.replace(W_dec=g - (g * W).sum(-1, keepdims=True) * W), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_learning_rate() -> optax.GradientTransformationExtraArgs:
    """Minus the learning rate, given to each update as `lr=`."""

    def update(updates, state, params=None, *, lr, **rest):
        del params, rest
        return jax.tree.map(lambda u: -lr * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def renormalise_decoder() -> optax.GradientTransformation:
    """Change the update so that the decoder rows that it leads to have norm 1. W_enc is not rescaled."""

    def update(updates: SAE, state, params: SAE):
        return updates.replace(W_dec=unit_rows(params.W_dec + updates.W_dec) - params.W_dec), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def unit_rows(W):
    """Rows of W [n, d] scaled to norm 1; a row of zeros stays zero."""
    norm = jnp.sqrt((W * W).sum(-1, keepdims=True))
    return W / jnp.where(norm > 0, norm, 1)


def norm(grads: SAE):
    """The norm of all gradients together."""
    # Behind a barrier, because XLA would write out squares that Adam needs too: an array as large as a gradient.
    squares = lambda g: (jax.lax.optimization_barrier(g) ** 2).sum()
    return jnp.sqrt(sum(squares(g) for g in jax.tree.leaves(grads)))


def ema_update(ema: SAE, params: SAE, decay: float) -> SAE:
    """ema + (1 - decay) (params - ema), started from zeros (app. A.5)."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)


def ema_weights(ema: SAE, step, decay: float) -> SAE:
    """The bias-corrected average after `step` updates, its decoder rows unit norm again where the spec wants that."""
    average = jax.tree.map(lambda e: e / (1 - decay**step), ema)
    if average.spec.decoder != "free":
        average = average.replace(W_dec=unit_rows(average.W_dec))
    return average
