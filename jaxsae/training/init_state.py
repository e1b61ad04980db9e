"""The state of a run at step 0, and what a restored one looks like. R sampled rows, d width."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.sae.calibrate import calibrate_threshold, reconstruct_replicated
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.init import geometric_median, initialise, mse_scale, torch_linear_init
from jaxsae.sae.normalise import normalise
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.step import TrainState

# Rows that b_dec and the loss's normalisation are computed from: as many as in the code released with the paper.
SAMPLE = 32_768
# Rows that the first thresholds of an autoencoder that is steered to an L0 are computed from.
CALIBRATION_SAMPLE = 2048


def make_init(sae: SAEConfig, training: TrainingConfig) -> Callable:
    """init(sample, params=None) -> TrainState, from activations [R, d] in the units of their source, under a mesh.

    Its weights are `params` if they are given, else random ones.
    """
    spec, options, selection = sae.spec(), sae.options(), sae.selection()

    def random_weights(key, sample) -> SAE:
        few, target = sample[:CALIBRATION_SAMPLE], sae.sparsity.target_l0
        calibrate = lambda params: params if target is None else calibrate_threshold(params, few, target, selection)
        if sae.init == "tied":
            run = lambda params, x: reconstruct_replicated(calibrate(params), x, selection)
            center = geometric_median(sample)
            return calibrate(initialise(key, spec, sae.n, center, options.own, run, P("latent", None)))
        width, dtype = sample.shape[1], sample.dtype
        return calibrate(torch_linear_init(key, spec, sae.n, width, options.own, dtype, P("latent", None)))

    def init(sample, params: SAE | None = None) -> TrainState:
        key, weights_key = jax.random.split(jax.random.key(training.batch.seed))
        sample = normalise(sample, spec.normalise)[0]
        params = random_weights(weights_key, sample) if params is None else params
        scaled = training.mse_scale == "variance"
        return TrainState(
            params=params,
            opt=make_optimizer(sae, training).init(params),
            ema=jax.tree.map(jnp.zeros_like, params) if training.ema_decay() else None,
            idle=jnp.zeros_like(params.b_enc, jnp.int32),
            mse_scale=mse_scale(sample) if scaled else jnp.ones_like(sample, shape=()),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    return init


def abstract_state(sae: SAEConfig, training: TrainingConfig, d: int, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state for activations of width d, for restoring one."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(make_init(sae, training), jax.ShapeDtypeStruct((SAMPLE, d), jnp.float32))

    def place(s):
        spec = s.sharding.spec if s.sharding else P()
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)
