"""The state of a run at step 0, and what a restored state looks like. R sampled rows, d width."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.sae.init import geometric_median, initialise, like_torch, mse_scale
from jaxsae.sae.normalise import normalise
from jaxsae.sae.sharded import at_l0, reconstruct_copies
from jaxsae.sae.struct import SAE
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.step import TrainState

# Rows that b_dec and the loss's normalisation are computed from: as many as in the code released with the paper.
SAMPLE = 32_768
# Of them, for the first thresholds of an autoencoder that is steered to an L0.
FEW = 2048


def _make(sample, params: SAE | None = None, *, sae: SAEConfig, training: TrainingConfig) -> TrainState:
    """The state from activations [R, d] in the units of their source, under a mesh."""
    spec = sae.spec()
    key, weights_key = jax.random.split(jax.random.key(training.seed))
    sample = normalise(sample, spec.normalise)[0]
    how, few = sae.selection(), sample[:FEW]
    settle = lambda params: params if sae.target_l0 is None else at_l0(params, few, sae.target_l0, how)
    run = lambda params, x: reconstruct_copies(settle(params), x, how)
    if params is not None:
        pass
    elif sae.init == "tied":
        params = settle(initialise(weights_key, spec, sae.n, geometric_median(sample), run, P("latent", None)))
    else:
        params = settle(like_torch(weights_key, spec, sae.n, sample.shape[1], sample.dtype, P("latent", None)))
    return TrainState(
        params=params,
        opt=make_optimizer(spec.decoder, eps=training.adam_eps).init(params),
        ema=jax.tree.map(jnp.zeros_like, params) if training.ema_decay() else None,
        idle=jnp.zeros_like(params.b_enc, jnp.int32),
        mse_scale=mse_scale(sample) if training.error_unit == "variance" else jnp.ones_like(sample, shape=()),
        key=key,
        step=jnp.zeros((), jnp.int32),
    )


def first_state(batches, mesh, sae: SAEConfig, training: TrainingConfig, params: SAE | None = None) -> TrainState:
    """The state of step 0 from the first SAMPLE rows of `batches`; its weights are `params`, where they are given."""
    sample = batches.sample(SAMPLE)
    with jax.set_mesh(mesh):
        return jax.jit(partial(_make, sae=sae, training=training))(sample, params)


def abstract_state(d: int, mesh, sae: SAEConfig, training: TrainingConfig) -> TrainState:
    """Shapes, dtypes and shardings of a run's state, for restoring one."""
    with jax.set_mesh(mesh):
        sample = jax.ShapeDtypeStruct((SAMPLE, d), jnp.float32)
        shapes = jax.eval_shape(partial(_make, sae=sae, training=training), sample)

    def place(s):
        spec = s.sharding.spec if s.sharding else P()
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)
