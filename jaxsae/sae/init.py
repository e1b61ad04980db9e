"""Initial weights from a sample of activations (Gao et al. 2024, sec. 2.5 and app. A.1, A.6).

R rows of the sample, d width, n latents. Everything is in normalised units.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.precision import matmul
from jaxsae.sae import activation_functions
from jaxsae.sae.decoder import row_norms, unit_rows
from jaxsae.sae.normalise import variance
from jaxsae.sae.types import SAE, Spec

Init = Literal["tied", "orthogonal"]
# How much the latents of a new transcoder add, compared with what they are to explain.
QUIET = 0.1


def geometric_median(x, steps: int = 100, tolerance: float = 1e-5):
    """The point with the least sum of distances to the rows of x [R, d], by Weiszfeld's algorithm from the mean."""

    def move(carry):
        median, _, step = carry
        distance = jnp.sqrt(((x - median) ** 2).sum(1))
        # A row that the median sits on would weigh infinitely much.
        weight = 1 / jnp.maximum(distance, jnp.finfo(x.dtype).tiny ** 0.5)
        moved = (weight[:, None] * x).sum(0) / weight.sum()
        return moved, jnp.sqrt(((moved - median) ** 2).sum()), step + 1

    go_on = lambda carry: (carry[1] >= tolerance) & (carry[2] < steps)
    mean = x.mean(0)
    return lax.while_loop(go_on, move, (mean, jnp.full_like(mean, jnp.inf, shape=()), 0))[0]


def mse_scale(x):
    """1 / variance of the rows of x [R, d] over B and d: with it, predicting the mean has loss 1."""
    return 1 / variance(x)


def directions(key, n: int, d: int, dtype=jnp.float32, sharding=None):
    """n uniformly random unit vectors [n, d], the same for every sharding."""
    W = jax.random.normal(key, (n, d), dtype, out_sharding=sharding)
    return W / row_norms(W)


def orthogonal(key, n: int, d: int, dtype=jnp.float32, sharding=None):
    """A uniformly random [n, d] whose columns are orthonormal, and its rows so a tight frame; its rows, where n < d."""
    if n < d:
        W = orthogonal(key, d, n, dtype).T
        return W if sharding is None else jax.reshard(W, sharding)
    A = jax.random.normal(key, (n, d), dtype, out_sharding=sharding)
    eigenvalues, V = jnp.linalg.eigh(
        jnp.matmul(A.T, A, precision="highest", out_sharding=None if sharding is None else P())
    )
    return jnp.matmul(A, (V / jnp.sqrt(eigenvalues)) @ V.T, precision="highest")


def torch_linear_init(
    key, spec: Spec, n: int, d: int, own, dtype=jnp.float32, sharding=None, d_out: int | None = None
) -> SAE:
    """PyTorch's default of linear layers; the decoder a tight frame, not normalised (Braun et al. 2024, their code)."""
    d_out = d if d_out is None else d_out
    keys = jax.random.split(key, 5)
    vector = None if sharding is None else P(sharding[0])
    uniform = lambda key, shape, bound, where: jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=where)
    return SAE(
        uniform(keys[0], (n, d), d**-0.5, sharding),
        uniform(keys[1], (n,), d**-0.5, vector),
        orthogonal(keys[2], n, d_out, dtype, sharding),
        uniform(keys[3], (d_out,), n**-0.5, None),
        spec,
        _extra(keys[4], spec, n, own, dtype, sharding),
    )


def _extra(key, spec: Spec, n: int, own, dtype, sharding):
    extra = activation_functions.get(spec.activation).init(key, n, dtype, own)
    return extra if sharding is None else jax.tree.map(lambda a: jax.reshard(a, P(sharding[0])), extra)


def initialise_transcoder(key, spec: Spec, n: int, pairs, skip: bool, own, reconstruct: Callable, sharding=None) -> SAE:
    """A transcoder of normalised `pairs` (x [R, d_in], y [R, d_out]), whose input and output have no space in common.

    Rows of the encoder are random unit vectors; each row of the decoder is the direction in which y varies together
    with its latent's pre-activation (an autoencoder's are parallel to the encoder's for the same reason). The biases
    are the medians of x and of y, the skip connection is zeros (Paulo et al. 2025). The encoder is scaled so that
    latents add a tenth of the size of what is to be explained: they know little yet.
    """
    x, y = pairs
    rows_key, extra_key = jax.random.split(key)
    W = directions(rows_key, n, x.shape[1], x.dtype, sharding)
    W_dec = unit_rows(matmul(W, matmul((x - x.mean(0)).T, y - y.mean(0))))
    extra = _extra(extra_key, spec, n, own, x.dtype, sharding)
    sae = SAE(W, jnp.zeros_like(W[:, 0]), W_dec, geometric_median(y), spec, extra)
    sae = as_transcoder(sae, geometric_median(x), skip)
    size = lambda a: jnp.sqrt(((a - sae.b_dec) ** 2).sum(1)).mean()
    factor = QUIET * size(y[:256]) / size(reconstruct(sae, x[:256]))
    return sae.replace(W_enc=factor * sae.W_enc, b_enc=factor * sae.b_enc)


def as_transcoder(sae: SAE, b_in, skip: bool) -> SAE:
    """`sae` whose encoder sees x - b_in [d_in], by a bias of its own or in b_enc, as its spec says; with a skip
    connection of zeros if it is to have one.
    """
    sae = sae.replace(W_skip=jnp.zeros_like(sae.b_dec, shape=(sae.d, sae.d_out))) if skip else sae
    return sae.replace(b_in=b_in) if sae.spec.subtract_b_dec else sae.replace(b_enc=sae.b_enc - matmul(sae.W_enc, b_in))


def output_unit(y, kind: str):
    """The number [1] by which what should come out of a transcoder, y [R, d_out], is divided: with the normalisation
    `kind` of its input, it gets the size of that: the median norm becomes 1 (unit_norm) or sqrt(d_out) (ln_std).
    """
    if kind == "none":
        return jnp.ones_like(y, shape=(1,))
    # A median, because a few tokens of a language model (the first) may be a hundred times longer than the others.
    length = jnp.median(row_norms(y))
    return (length if kind == "unit_norm" else length / y.shape[1] ** 0.5)[None]


def initialise(key, spec: Spec, n: int, b_dec, own, reconstruct: Callable, sharding=None) -> SAE:
    """An autoencoder with b_dec [d], unit-norm decoder rows in random directions, and the encoder parallel to it.

    The encoder is scaled so that random unit vectors around b_dec come back, on average, with norm 1.
    `own` are the activation function's flags (`Options.own`); `reconstruct(sae, x)` runs the autoencoder on x [256, d];
    `sharding` is that of an array [n, d].
    """
    d = len(b_dec)
    rows_key, extra_key, probe_key = jax.random.split(key, 3)
    W = directions(rows_key, n, d, b_dec.dtype, sharding)
    sae = SAE(W, jnp.zeros_like(W[:, 0]), W, b_dec, spec, _extra(extra_key, spec, n, own, b_dec.dtype, sharding))
    probe = directions(probe_key, 256, d, b_dec.dtype) + b_dec
    norm = jnp.sqrt(((reconstruct(sae, probe) - b_dec) ** 2).sum(1)).mean()
    return sae.replace(W_enc=sae.W_enc / norm)
