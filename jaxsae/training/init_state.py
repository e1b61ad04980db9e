"""The state of a run at step 0, and what a restored one looks like. R sampled rows, d width."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.sae.calibrate import calibrate_threshold, reconstruct_replicated
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.init import (
    as_transcoder,
    geometric_median,
    initialise,
    initialise_transcoder,
    mse_scale,
    output_unit,
    torch_linear_init,
)
from jaxsae.sae.normalise import normalise, normalise_pair
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.step import TrainState

# Rows that b_dec and the loss's normalisation are computed from: as many as in the code released with the paper.
SAMPLE = 32_768
# Rows that the first thresholds of an autoencoder that is steered to an L0 are computed from.
CALIBRATION_SAMPLE = 2048


def make_init(sae: SAEConfig, training: TrainingConfig) -> Callable:
    """init(sample, params=None, seed=None) -> TrainState, from activations [R, d] in the units of their source, under
    a mesh; for a transcoder from pairs of them, ([R, d], [R, d_out]).

    Its weights are `params` if they are given, else random ones. `seed`: traced, in place of the configuration's.
    """
    spec, options, selection = sae.spec(), sae.options(), sae.selection()
    rows = P("latent", None)

    def random_weights(key, x, y=None) -> SAE:
        few, target = x[:CALIBRATION_SAMPLE], sae.sparsity.target_l0
        calibrate = lambda params: params if target is None else calibrate_threshold(params, few, target, selection)
        run = lambda params, x: reconstruct_replicated(calibrate(params), x, selection)
        if sae.init == "tied" and y is None:
            return calibrate(initialise(key, spec, sae.n, geometric_median(x), options.own, run, rows))
        if sae.init == "tied":
            return calibrate(initialise_transcoder(key, spec, sae.n, (x, y), sae.skip, options.own, run, rows))
        width, dtype = x.shape[1], x.dtype
        d_out = width if y is None else y.shape[1]
        params = torch_linear_init(key, spec, sae.n, width, options.own, dtype, rows, d_out)
        return calibrate(params if y is None else as_transcoder(params, jnp.zeros_like(x[0]), sae.skip))

    def init(sample, params: SAE | None = None, seed=None) -> TrainState:
        key, weights_key = jax.random.split(jax.random.key(training.batch.seed if seed is None else seed))
        if not isinstance(sample, tuple):
            x = y = normalise(sample, spec.normalise, spec.sections)[0]
            params = random_weights(weights_key, x) if params is None else params
        else:
            unit = output_unit(sample[1], spec.normalise if params is None else "none")
            # Only those of other libraries have none.
            unit = unit if params is None or params.scale_out is None else params.scale_out
            x, y, _, _ = normalise_pair(sample, spec.normalise, scale_out=unit)
            params = (random_weights(weights_key, x, y) if params is None else params).replace(scale_out=unit)
        scaled = training.mse_scale == "variance"
        return TrainState(
            params=params,
            opt=make_optimizer(sae, training).init(params),
            ema=jax.tree.map(jnp.zeros_like, params) if training.ema_decay() else None,
            idle=jnp.zeros_like(params.b_enc, jnp.int32),
            mse_scale=mse_scale(y) if scaled else jnp.ones_like(y, shape=()),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    return init


def abstract_state(
    sae: SAEConfig, training: TrainingConfig, d: int, mesh: jax.sharding.Mesh, d_out: int | None = None
) -> TrainState:
    """Shapes, dtypes and shardings of a state for activations of width d, for restoring one; of a transcoder, whose
    output has width d_out.
    """
    rows = lambda width: jax.ShapeDtypeStruct((SAMPLE, width), jnp.float32)
    sample = rows(d) if d_out is None else (rows(d), rows(d_out))
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(make_init(sae, training), sample)

    def place(s):
        spec = s.sharding.spec if s.sharding else P()
        return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(place, shapes)
