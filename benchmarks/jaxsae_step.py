"""jaxsae's training step as `jaxsae train` compiles it, on batches without structure, for the benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.config import with_fields
from jaxsae.distributed.mesh import make_mesh, replicate
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.decoder import unit_rows
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig
from jaxsae.training.program import Program, make_program
from jaxsae.training.step import TrainState


@dataclass(frozen=True)
class Case:
    """A compiled step with everything that it is called with."""

    compiled: Any  # (state, batch, hyper, lm) -> (state, metrics), the state's memory reused
    state: TrainState
    batch: Any
    program: Program
    lm: Any
    mesh: jax.sharding.Mesh

    def stepper(self) -> Callable[[], dict]:
        """A function that makes one step, waits for it and returns its metrics; the state goes from call to call."""
        state = [self.state]

        def run() -> dict:
            with jax.set_mesh(self.mesh):
                state[0], metrics = self.compiled(state[0], self.batch, self.program.hyper, self.lm)
            return jax.block_until_ready((state[0], metrics))[1]

        return run


def configuration(batch_size: int, **values) -> TrainingConfig:
    """A training run in which no latent dies while it is measured; `values` are named as flags are."""
    return with_fields(TrainingConfig(), tokens=10**9, dead_after=10**8, batch_size=batch_size, **values)


def make_state(program: Program, sae: SAEConfig, training: TrainingConfig, mesh, dead: float = 0.0) -> TrainState:
    """A random state; that share of the latents is dead: they have counted so, and their encoder rows are small."""

    def make(key) -> tuple[SAE, Any]:
        W_dec = unit_rows(jax.random.normal(key, (sae.n, program.d), out_sharding=P("latent", None)))
        number = jnp.arange(sae.n, out_sharding=P("latent"))
        asleep = number % round(1 / dead) == 0 if dead else number < 0
        b_enc = jnp.zeros_like(W_dec, shape=sae.n, out_sharding=P("latent"))
        params = SAE(W_dec * jnp.where(asleep, 1e-3, 1)[:, None], b_enc, W_dec, jnp.zeros(program.d), sae.spec())
        return params, jnp.where(asleep, training.dead_window(), 0)

    with jax.set_mesh(mesh):
        params, idle = jax.jit(make)(jax.random.key(0))
        state = program.init(jax.random.normal(jax.random.key(2), (1024, program.d)), params)
    return replace(state, idle=idle)


def make_case(
    sae: SAEConfig,
    training: TrainingConfig,
    d: int,
    dead: float = 0.0,
    mesh_shape: tuple[int, int] = (1, 1),
    tokens=None,
    lm=None,
    hook: str = "",
) -> Case:
    """A step compiled on a mesh of `mesh_shape` devices, for one batch of activations of N(0, 1).

    For an objective that reads contexts: of token ids `tokens` [b, T], with the language model `lm`, at `hook`.
    """
    mesh = make_mesh(*mesh_shape)
    program = make_program(sae, training, d, None if lm is None else lm.config, hook)
    state = make_state(program, sae, training, mesh, dead)
    if lm is None:
        x = jax.random.normal(jax.random.key(1), (training.batch.batch_size, d))
        batch = (jax.device_put(x, NamedSharding(mesh, P("data"))),)
    else:
        lm, batch = replicate((lm, tokens), mesh)
    with jax.set_mesh(mesh):
        compiled = program.step.lower(state, batch, program.hyper, lm).compile()
    return Case(compiled, state, batch, program, lm, mesh)
