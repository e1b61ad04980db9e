"""From a configuration to the functions that train: the one recipe, for runs, plans, benchmarks and tests.

program = make_program(config.sae, config.training, d=768)
state = program.first_state(batches, mesh)
with jax.set_mesh(mesh):
    state, metrics = program.step(state, batch, program.hyper, lm)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxsae.sae.config import SAEConfig
from jaxsae.sae.types import SAE
from jaxsae.training import objectives
from jaxsae.training.config import TrainingConfig
from jaxsae.training.init_state import SAMPLE, abstract_state, make_init
from jaxsae.training.objectives import Objective
from jaxsae.training.records import Hyper
from jaxsae.training.resample import make_resample
from jaxsae.training.step import TrainState, hyper, make_step


@dataclass(frozen=True)
class Program:
    """Functions of arrays, jitted, for one shape of the autoencoder and one mesh at a time (the one that is set)."""

    objective: Objective
    hyper: Hyper  # of this configuration; another one may be given to `step`
    seed: int
    d: int
    init: Callable  # (sample [R, d], or a pair of a transcoder's, params=None, seed=None) -> TrainState
    abstract_state: Callable  # (mesh) -> the shapes and shardings of a TrainState, for restoring one
    step: Callable  # (state, batch, hyper, lm=None) -> (state, metrics); takes the state's place in memory
    resample: Callable  # (state, batch, hyper, lm=None) -> state; takes the state's place in memory
    resample_steps: frozenset[int]  # the steps after which dead latents are resampled
    d_out: int | None = None  # of a transcoder, the width of its output

    def first_state(self, batches, mesh: jax.sharding.Mesh, params: SAE | None = None) -> TrainState:
        """The state at step 0 from the first SAMPLE rows of `batches`; its weights are `params` if given."""
        sample = batches.sample(SAMPLE) if self.d_out is None else batches.samples(SAMPLE)
        return self.state_of(sample, mesh, params)

    def state_of(self, sample, mesh: jax.sharding.Mesh, params: SAE | None = None) -> TrainState:
        """The same from sampled rows [R, d], or a pair of a transcoder's."""
        with jax.set_mesh(mesh):
            return self.init(sample, params, np.uint32(self.seed))

    def train_step(self, state: TrainState, batch, number: int, lm=None) -> tuple[TrainState, dict]:
        """Step `number` (from 1), and resampling after it if it is due."""
        state, metrics = self.step(state, batch, self.hyper, lm)
        return (self.resample(state, batch, self.hyper, lm) if number in self.resample_steps else state), metrics


def make_program(
    sae: SAEConfig,
    training: TrainingConfig,
    d: int,
    lm: Any = None,
    hook: str = "",
    d_out: int | None = None,
    hook_out: str | None = None,
) -> Program:
    """The program of one autoencoder for activations of width d; of a transcoder, whose output has width d_out.

    `lm` (a language model's configuration), `hook` and a transcoder's `hook_out` are for objectives that read contexts.
    Raises BadInput if the objective cannot be computed there.
    """
    objective = make_objective([(hook, sae)], training, lm, hook_out)
    return Program(
        objective,
        hyper(sae, training),
        training.batch.seed,
        d,
        jax.jit(make_init(sae, training)),
        partial(abstract_state, sae, training, d, d_out=d_out),
        jax.jit(make_step(sae, training, objective, training.k_aux(sae.n, d)), donate_argnums=0),
        jax.jit(make_resample(sae, training, objective), donate_argnums=0),
        frozenset(training.resample_steps()),
        d_out,
    )


def make_objective(sites, training: TrainingConfig, lm: Any = None, hook_out: str | None = None) -> Objective:
    """The objective of `training` for autoencoders at `sites`, pairs (hook point, SAEConfig); or for a transcoder."""
    own = getattr(training.objectives, training.objective, None)
    context = objectives.Context(tuple(sites), training.mse_scale, lm, training.objective, hook_out)
    return training.type.make(own, context)
