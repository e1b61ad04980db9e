"""jaxsae's training step on activations without structure, as `jaxsae train` compiles it, for the benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.common import DEAD, Shape
from jaxsae.mesh import make_mesh
from jaxsae.sae.struct import SAE
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.optimizer import make_optimizer, unit_rows
from jaxsae.training.step import Hyper, TrainState, hyper, make_step


@dataclass(frozen=True)
class Case:
    """A compiled step with its state and its batch."""

    step: Callable  # (state, x, hyper) -> (state, metrics), state donated
    state: TrainState
    x: Any  # [B, d]
    hyper: Hyper
    compiled: Any  # what the compiler made, for its memory analysis
    mesh: Any


def make_state(mesh, shape: Shape, sae: SAEConfig, training: TrainingConfig, dead: float = DEAD) -> TrainState:
    """A random state; that share of the latents is dead: they have counted so, and their encoder rows are small."""

    def make(key):
        a, b = jax.random.split(key)
        W_dec = unit_rows(jax.random.normal(a, (shape.n, shape.d), out_sharding=P("latent", None)))
        idle = jnp.zeros(shape.n, jnp.int32, out_sharding=P("latent"))
        asleep = jnp.arange(shape.n, out_sharding=P("latent")) % round(1 / dead) == 0 if dead else idle > 0
        W_enc = W_dec * jnp.where(asleep, 1e-3, 1)[:, None]
        b_enc = jnp.zeros_like(W_enc, shape=shape.n, out_sharding=P("latent"))
        params = SAE(W_enc, b_enc, W_dec, jnp.zeros(shape.d), sae.spec())
        return TrainState(
            params=params,
            opt=make_optimizer(sae.decoder, eps=training.adam_eps).init(params),
            ema=jax.tree.map(jnp.zeros_like, params) if training.ema_decay() else None,
            idle=jnp.where(asleep, training.dead_window(), idle),
            mse_scale=jnp.ones(()),
            key=b,
            step=jnp.zeros((), jnp.int32),
        )

    with jax.set_mesh(mesh):
        return jax.jit(make)(jax.random.key(0))


def make_case(
    shape: Shape, sae: SAEConfig, training: TrainingConfig, dead: float = DEAD, mesh_shape: tuple[int, int] = (1, 1)
) -> Case:
    """A step of `shape` compiled on a mesh of `mesh_shape` devices."""
    mesh = make_mesh(*mesh_shape)
    state = make_state(mesh, shape, sae, training, dead)
    x = jax.random.normal(jax.random.key(1), (shape.B, shape.d))
    x = jax.device_put(x, NamedSharding(mesh, P("data")))
    step = make_step(sae, training, make_optimizer(sae.decoder, eps=training.adam_eps), shape.k_aux)
    step, knobs = jax.jit(step, donate_argnums=0), hyper(sae, training)
    with jax.set_mesh(mesh):
        compiled = step.lower(state, x, knobs).compile()
    return Case(compiled, state, x, knobs, compiled, mesh)
