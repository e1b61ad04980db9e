"""One training step as a pure function of (state, batch). B tokens, d width, n latents.

Sharding, in the notation that `jax.typeof` prints under a mesh with explicit axes: tokens [B@data, d], weights
[n@latent, d], counters [n@latent]. shard_map is around the autoencoder only (sae/sharded.py); the objective, the
optimizer and the averages are plain code over global arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsae.sae import activation_functions
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig
from jaxsae.training.gradient import make_gradient
from jaxsae.training.objectives import Objective
from jaxsae.training.optimizer import clip, ema_update, lr_factor, make_optimizer, norm
from jaxsae.training.records import Hyper, Seen

# Idle tokens are counted up to here, far beyond any dead window, so that int32 cannot wrap.
IDLE_CAP = 1 << 30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a run carries from step to step, and all that a checkpoint holds."""

    params: SAE
    opt: Any
    ema: SAE | None  # uncorrected average of the weights; None if EMA is off
    idle: Any  # [n] int32, tokens since each latent last fired
    mse_scale: Any  # 1 / variance of the activations over B and d, frozen at the start; 1 with --mse-scale none
    key: Any  # key from which all randomness of the run descends
    step: Any  # int32, updates made


def hyper(sae: SAEConfig, training: TrainingConfig) -> Hyper:
    """The numbers of a configuration that a step takes as arguments."""
    return Hyper(
        training.learning_rate(sae),
        training.auxk_weight(sae.activation),
        training.sparsity_weight(sae),
        training.dead_window(),
        training.auxk_window(),
    )


def make_step(sae: SAEConfig, training: TrainingConfig, objective: Objective, k_aux: int) -> Callable:
    """step(state, batch, hyper, lm) -> (state, metrics); `batch` is what the objective prepares."""
    gradient, update = make_gradient(sae, training, objective, k_aux), make_update(sae, training)

    def step(state: TrainState, batch, hyper: Hyper, lm=None):
        # AuxK sees the counters from before the step, so that neither the mesh nor micro-batches change it.
        dead = state.idle >= hyper.auxk_window
        grads, metrics, seen = gradient(state.params, batch, dead, replace(hyper, mse_scale=state.mse_scale), lm)
        # Else XLA moves parts of the update into both branches of the gradient, with arrays as large as it is.
        grads = jax.lax.optimization_barrier(grads)
        with jax.named_scope("update"):
            size = norm(grads)
            state = update(state, clip(grads, size, training.optimizer.grad_clip), seen, hyper)
        return state, metrics | {"dead_fraction": (state.idle >= hyper.dead_window).mean(), "grad_norm": size}

    return step


def make_update(sae: SAEConfig, training: TrainingConfig) -> Callable:
    """update(state, gradient, Seen, hyper) -> state: what follows the gradient."""
    factor, optimizer = lr_factor(training), make_optimizer(sae, training)
    family, tokens = activation_functions.get(sae.activation), training.batch.batch_size

    def update(state: TrainState, grads: SAE, seen: Seen, hyper: Hyper) -> TrainState:
        updates, opt = optimizer.update(grads, state.opt, state.params, lr=hyper.lr * factor(state.step))
        params = optax.apply_updates(state.params, updates)
        if family.update_extra is not None:
            params = params.replace(extra=family.update_extra(params.extra, seen.min_active, state.step))
        return replace(
            state,
            params=params,
            opt=opt,
            ema=None if state.ema is None else ema_update(state.ema, params, training.ema_decay()),
            idle=jnp.where(seen.fired > 0, 0, jnp.minimum(state.idle + tokens, IDLE_CAP)),
            step=state.step + 1,
        )

    return update
