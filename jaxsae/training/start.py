"""The state of a run at step 0, and what a restored state looks like. R sampled rows, d width."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.sae.init import geometric_median, initialise, like_torch, mse_scale
from jaxsae.sae.normalise import normalise
from jaxsae.sae.sharded import reconstruct_copies
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.step import TrainState

# Rows that b_dec and the loss's normalisation are computed from: as many as in the code released with the paper.
SAMPLE = 32_768


def _make(sample, sae: SAEConfig, training: TrainingConfig) -> TrainState:
    """The state from activations [R, d] in the units of their source, under a mesh."""
    spec = sae.spec()
    key, weights_key = jax.random.split(jax.random.key(training.seed))
    sample = normalise(sample, spec.normalise)[0]
    run = partial(reconstruct_copies, how=sae.selection())
    if sae.init == "tied":
        params = initialise(weights_key, spec, sae.n, geometric_median(sample), run, P("latent", None))
    else:
        params = like_torch(weights_key, spec, sae.n, sample.shape[1], sample.dtype, P("latent", None))
    return TrainState(
        params=params,
        opt=make_optimizer(spec.decoder).init(params),
        ema=jax.tree.map(jnp.zeros_like, params) if training.ema_decay() else None,
        idle=jnp.zeros_like(params.b_enc, jnp.int32),
        mse_scale=mse_scale(sample),
        key=key,
        step=jnp.zeros((), jnp.int32),
    )


def first_state(batches, mesh, sae: SAEConfig, training: TrainingConfig) -> TrainState:
    """The state of step 0. The sample is the first SAMPLE rows of `batches` (a data.activations.Batches), or all."""
    plan, source = batches.plan, batches.source
    rows = min(SAMPLE, len(source) * source.rows)
    chunks = range(max(1, -(-rows // (plan.batches * plan.batch))))

    @jax.jit
    def take(chunk):
        some = min(len(chunk), -(-rows // chunk.shape[1]))
        return jax.reshard(chunk[:some], P()).reshape(-1, chunk.shape[-1])[:rows]

    with jax.set_mesh(mesh):
        sample = jnp.concatenate([take(batches.chunk(number)) for number in chunks])[:rows]
        return jax.jit(partial(_make, sae=sae, training=training))(sample)


def abstract_state(d: int, mesh, sae: SAEConfig, training: TrainingConfig) -> TrainState:
    """Shapes, dtypes and shardings of a run's state, for restoring one."""
    with jax.set_mesh(mesh):
        sample = jax.ShapeDtypeStruct((SAMPLE, d), jnp.float32)
        shapes = jax.eval_shape(partial(_make, sae=sae, training=training), sample)

    def place(s):
        spec = s.sharding.spec if s.sharding else P()
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)
