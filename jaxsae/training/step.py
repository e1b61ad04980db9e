"""One training step as a pure function of (state, batch). B tokens, d width, n latents, c slots of a code.

Sharding, in the notation that `jax.typeof` prints under a mesh with explicit axes: tokens [B@data, d], weights
[n@latent, d], counters [n@latent]. shard_map is around the autoencoder only (sae/sharded.py); the objective, the
optimizer and the averages are plain code over global arrays.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsae.sae import activations
from jaxsae.sae.normalise import normalise
from jaxsae.sae.struct import SAE
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.gradient import Coefficients, make_gradient
from jaxsae.training.objectives import LOCAL, Objective
from jaxsae.training.optimizer import ema_update, lr_factor, norm

# Idle tokens are counted up to here, far beyond any dead window, so that int32 cannot wrap.
IDLE_CAP = 1 << 30


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "opt", "ema", "idle", "mse_scale", "key", "step"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """Everything that a run carries from step to step, and all that a checkpoint holds."""

    params: SAE
    opt: Any
    ema: SAE | None  # uncorrected average of the weights; None where EMA is off
    idle: Any  # [n] int32, tokens since each latent last fired
    mse_scale: Any  # 1 / variance of the activations over B and d, frozen at the start
    key: Any  # key from which all randomness of the run descends
    step: Any  # int32, updates made


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["lr", "auxk_coef", "sparsity", "dead_window"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Hyper:
    """What may differ between runs of one compiled step."""

    lr: Any
    auxk_coef: Any
    sparsity: Any
    dead_window: Any


def hyper(sae: SAEConfig, training: TrainingConfig) -> Hyper:
    return Hyper(
        training.learning_rate(sae.n),
        training.auxk_weight(sae.activation),
        training.sparsity_weight(sae),
        training.dead_window(),
    )


def make_step(sae: SAEConfig, training: TrainingConfig, optimizer, k_aux: int, objective: Objective = LOCAL):
    """step(state, batch, hyper, lm) -> (state, metrics), to be jitted.

    A batch is activations [B@data, d] in the units of their source; of an objective that is end to end, token ids
    [b@data, T] for the language model `lm`.
    """
    gradient, update = make_gradient(sae, training, k_aux, objective), make_update(sae, training, optimizer)

    def step(state: TrainState, batch, hyper: Hyper, lm=None):
        tokens = batch.size if objective.end_to_end else len(batch)
        if not objective.end_to_end:
            batch = (normalise(batch, sae.normalise)[0],) * 2
        # AuxK sees the counters from before the step, so that neither the mesh nor micro-batches change it.
        dead = state.idle >= hyper.dead_window
        weigh = Coefficients(state.mse_scale, hyper.auxk_coef, hyper.sparsity)
        grads, metrics, fired, least = gradient(state.params, batch, dead, weigh, lm)
        # Else XLA moves parts of the update into both branches of the gradient, with arrays as large as it is.
        grads = jax.lax.optimization_barrier(grads)
        size = norm(grads)
        state = update(state, clip(grads, size, training.clip), fired, least, tokens, hyper)
        return state, metrics | {"dead_fraction": (state.idle >= hyper.dead_window).mean(), "grad_norm": size}

    return step


def make_update(sae: SAEConfig, training: TrainingConfig, optimizer):
    """update(state, gradient, firing counts [n@latent], least, tokens, hyper) -> state: what follows the gradient."""
    activation, factor = activations.get(sae.activation), lr_factor(training)

    def update(state: TrainState, grads: SAE, fired, least, tokens: int, hyper: Hyper) -> TrainState:
        updates, opt = optimizer.update(grads, state.opt, state.params, lr=hyper.lr * factor(state.step))
        faster = {name: activation.rates.get(name, 1) * u for name, u in updates.extra.items()}
        params = optax.apply_updates(state.params, updates.replace(extra=faster))
        if activation.observe is not None:
            params = params.replace(extra=activation.observe(params.extra, least, state.step))
        return replace(
            state,
            params=params,
            opt=opt,
            ema=None if state.ema is None else ema_update(state.ema, params, training.ema_decay()),
            idle=jnp.where(fired > 0, 0, jnp.minimum(state.idle + tokens, IDLE_CAP)),
            step=state.step + 1,
        )

    return update


def clip(grads, size, bound: float | None):
    """Gradients whose norm is `size`, scaled down to `bound` where that is less."""
    return grads if bound is None else jax.tree.map(lambda g: g * jnp.minimum(1, bound / (size + 1e-6)), grads)
