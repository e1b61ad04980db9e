"""How much of a dictionary a smaller autoencoder explains whose tokens are its rows (Bussmann et al. 2024).

n rows, m latents of the smaller one, d width.

If rows share directions of which each uses a few, a smaller TopK autoencoder finds these. Random rows with the same
mean and covariance say how much it would explain without.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax
from tqdm import tqdm

from jaxsae.evals import latents
from jaxsae.precision import matmul
from jaxsae.sae.decoder import unit_rows
from jaxsae.sae.layout import LATENT, LATENTS, REPLICATED, TOKENS
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import SAE, Spec

# Rows of a batch.
BATCH = 1024
# Steps between two movements of the progress bar.
STEPS_AT_ONCE = 50


@dataclass(frozen=True)
class Training:
    """How the smaller autoencoder is trained: Adam, the learning rate falling linearly to 0."""

    k: int = 4
    steps: int = 600
    lr: float = 2e-3
    seed: int = 0


def explained(rows, m: int, training: Training, quiet: bool = True) -> float:
    """The share of the variance of `rows` [n, d] around their mean that a TopK autoencoder of m latents, trained on
    them, explains of the same rows.

    Rows lie on every device of the mesh that is set; m divides over its axis `latent`. The smaller autoencoder starts
    from m of the rows, as encoder and decoder.
    """
    key = jax.random.key(training.seed)
    state = _start(rows, key, m, training)
    steps = range(0, training.steps, STEPS_AT_ONCE)
    for start in tqdm(steps, "meta-structure", unit_scale=STEPS_AT_ONCE, unit="step", disable=quiet, leave=False):
        count = min(STEPS_AT_ONCE, training.steps - start)
        state = jax.block_until_ready(_train(state, rows, key, start, count, training))
    return float(_share(state[0], rows))


def random_rows(rows, seed: int):
    """As many unit rows [n, d], from the normal distribution with the mean and covariance of `rows` [n, d]."""
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = jnp.linalg.eigh(matmul(centred.T, centred) / len(rows))
    noise = jax.random.normal(jax.random.key(seed), rows.shape, rows.dtype)
    return unit_rows(mean + matmul(noise * jnp.sqrt(jnp.maximum(values, 0)), vectors.T))


def latents_of(n: int) -> int:
    """A quarter of n, so many that they divide over the mesh that is set."""
    axis = jax.sharding.get_abstract_mesh().shape.get(LATENT, 1)
    return max(1, -(-n // 4 // axis)) * axis


def _optimizer(training: Training):
    return optax.adam(optax.linear_schedule(training.lr, 0, training.steps))


@partial(jax.jit, static_argnames=("m", "training"))
def _start(rows, key, m: int, training: Training):
    picked = jax.random.choice(jax.random.fold_in(key, training.steps), len(rows), (m,), replace=False)
    W = rows.at[picked].get(out_sharding=LATENTS)
    spec = Spec("topk", training.k, "none", "unit_norm", True)
    sae = SAE(W, jnp.zeros_like(W[:, 0]), W, rows.mean(0), spec)
    return sae, _optimizer(training).init(sae)


@partial(jax.jit, static_argnames=("count", "training"))
def _train(state, rows, key, start, count: int, training: Training):
    # A batch divides over the mesh, whatever that is.
    axis = jax.sharding.get_abstract_mesh().shape["data"]
    batch = -(-BATCH // axis) * axis

    def loss(sae, x):
        return ((x - autoencode(sae, x, choose(sae, x)).xhat) ** 2).sum(-1).mean()

    def step(state, number):
        sae, moments = state
        picked = jax.random.randint(jax.random.fold_in(key, number), (batch,), 0, len(rows))
        gradient = jax.grad(loss)(sae, rows.at[picked].get(out_sharding=TOKENS))
        updates, moments = _optimizer(training).update(gradient, moments)
        sae = optax.apply_updates(sae, updates)
        return (sae.replace(W_dec=unit_rows(sae.W_dec)), moments), None

    return lax.scan(step, state, start + jnp.arange(count))[0]


@jax.jit
def _share(sae, rows):
    axis = jax.sharding.get_abstract_mesh().shape["data"]
    padded = jnp.pad(rows, ((0, -len(rows) % axis), (0, 0)))
    xhat = jax.reshard(latents.reconstruct(sae, jax.reshard(padded, TOKENS)), REPLICATED)[: len(rows)]
    return 1 - ((rows - xhat) ** 2).sum() / ((rows - rows.mean(0)) ** 2).sum()
