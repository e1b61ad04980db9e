"""Programs that many tests run: compiled once for each mesh and configuration, whatever the numbers."""

from functools import cache

import jax

from jaxsae.distributed.mesh import make_mesh, shardings
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.layout import LATENTS, TOKENS
from jaxsae.sae.types import partition_specs
from jaxsae.training.config import TrainingConfig
from jaxsae.training.gradient import make_gradient
from jaxsae.training.program import make_objective
from jaxsae.training.records import Hyper


def one_gradient(sae: SAEConfig, training: TrainingConfig, k_aux: int = 8, objective=None):
    """gradient(params, batch, dead, weights, lm=None) -> (grads, metrics, fired, min_active) of one autoencoder.

    `weights` are those of squared errors, AuxK and the sparsity term.
    """
    objective = make_objective([("", sae)], training) if objective is None else objective
    run = make_gradient(sae, training, objective, k_aux)

    def gradient(params, batch, dead, weights, lm=None):
        grads, metrics, seen = run(
            params, batch, dead, Hyper(mse_scale=weights[0], auxk_coef=weights[1], sparsity=weights[2]), lm
        )
        return grads, metrics, seen.fired, seen.min_active

    return gradient


@cache
def _compiled(mesh, sae: SAEConfig, training: TrainingConfig, k_aux: int):
    return jax.jit(one_gradient(sae, training, k_aux))


def local_gradient(mesh, sae_config, training, k_aux, sae, batch, dead, weights):
    """The local objective's gradient of `sae` on a mesh of this shape; `batch` is (x,) or (x, y), rows [B, d]."""
    grid = make_mesh(*mesh)
    put = lambda tree, specs: jax.device_put(tree, shardings(grid, specs))
    with jax.set_mesh(grid):
        batch = tuple(put(a, TOKENS) for a in batch)
        args = put(sae, partition_specs(sae)), batch, put(dead, LATENTS), tuple(map(float, weights))
        return _compiled(mesh, sae_config, training, k_aux)(*args)
