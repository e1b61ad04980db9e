"""The best single latent of an autoencoder for a binary task, on a mesh. R examples, d width, n latents.

Latents are probed on their pre-activations: what the encoder computes before its activation function, from the
activation as the autoencoder sees it. They are taken in blocks, split over all devices of the mesh, and of each device
only the best latent is kept, so that memory does not grow with n.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsae.evals import latents
from jaxsae.evals.probes import newton
from jaxsae.precision import matmul
from jaxsae.sae import activation_functions
from jaxsae.sae.layout import REPLICATED, TOKENS, Layout
from jaxsae.sae.normalise import normalise
from jaxsae.sae.sharded import SLOTS, over_mesh
from jaxsae.sae.types import SAE, partition_specs

# Numbers of a block, [R, block].
AT_ONCE = 1 << 19
# Numbers of codes that exist at once on a device.
NUMBERS = 1 << 22
# Examples are filled up to a multiple, with some that count nothing, so that few shapes are compiled.
MULTIPLE = 128


@dataclass(frozen=True)
class Best:
    """The latent with the least loss on the examples that all were fitted to, the first of equals."""

    latent: int
    w: float  # of its probe, on the pre-activation in its own units
    b: float
    loss: float  # on these examples, nats


def best_latent(sae: SAE, x, y, at_once: int = AT_ONCE) -> Best:
    """The best latent for labels y [R] of activations x [R, d], on the mesh that is set; x is the same everywhere."""
    x, y, weight = filled(x, y)
    each = jax.device_get(_best_latents(sae, x, y, weight, max(1, at_once // len(x))))
    loss, latent, w, b = (a.ravel() for a in each)
    # Every device has another part of the latents, or the same.
    i = np.lexsort((latent, loss))[0]
    return Best(int(latent[i]), float(w[i]), float(b[i]), float(loss[i]))


def best_channel(x, y) -> Best:
    """The same of the d numbers of activations x [R, d] themselves."""
    x, y, weight = filled(x, y)
    probes = jax.device_get(newton.fit(x, y, weight))
    i = int(probes.loss.argmin())
    return Best(i, *(float(a[i]) for a in (probes.w, probes.b, probes.loss)))


@jax.jit
def preactivations(sae: SAE, x, numbers):
    """The pre-activations [R, A] of the latents `numbers` [A] on activations x [R, d]."""
    x, _, _ = normalise(x, sae.spec.normalise)
    W, bias = (a.at[numbers].get(out_sharding=REPLICATED) for a in (sae.W_enc, sae.b_enc))
    return matmul(x - sae.input_bias(), W.T) + bias


def filled(x, y, multiple: int = MULTIPLE):
    """x [R, d], y [R] and weights [R] of the examples, filled up to a multiple with examples of weight 0."""
    more = -len(x) % multiple
    pad = lambda a: np.concatenate([a, np.repeat(a[:1], more, axis=0)])
    x = pad(np.asarray(x))
    return x, pad(np.asarray(y, x.dtype)), (np.arange(len(x)) < len(x) - more).astype(x.dtype)


@partial(jax.jit, static_argnames="block")
def _best_latents(sae, x, y, weight, block: int):
    """Loss, number, w and b of the best latent of each device, [data, latent] each."""
    x, _, _ = normalise(x, sae.spec.normalise)

    def local(layout, sae, x, y, weight):
        part, first = _part(layout, sae)
        x, y, weight = layout.pvary(x, y, weight)
        (bias,) = layout.pvary(sae.input_bias())
        x = x - bias
        size = min(block, len(part.W_enc))
        blocks = -(-len(part.W_enc) // size)

        def of_block(best, i):
            # The last block begins early enough to be whole; the first of equals is kept.
            start = jnp.minimum(i * size, len(part.W_enc) - size)
            W, b_enc = (lax.dynamic_slice_in_dim(a, start, size) for a in (part.W_enc, part.b_enc))
            probes = newton.fit(matmul(x, W.T) + b_enc, y, weight)
            j = lax.argmin(probes.loss, 0, jnp.int32)
            new = probes.loss[j], first + start + j, probes.w[j], probes.b[j]
            return jax.tree.map(lambda a, b: jnp.where(new[0] < best[0], a, b), new, best), None

        zero = jnp.zeros((), x.dtype)
        nothing = layout.pvary(zero + jnp.inf, jnp.zeros((), jnp.int32), zero, zero)
        best, _ = lax.scan(of_block, nothing, jnp.arange(blocks, dtype=jnp.int32))
        return jax.tree.map(lambda a: a[None, None], best)

    specs = partition_specs(sae), REPLICATED, REPLICATED, REPLICATED
    each = over_mesh(local, specs, (SLOTS,) * 4)(sae, x, y, weight)
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), each)


def _part(layout: Layout, sae: SAE):
    """The latents that this device probes, and the number of the first: devices that hold the same ones share them."""
    offset, n = layout.latent_offset(sae.n), sae.n
    parts = lax.axis_size(layout.data) if layout.data else 1
    W_enc, b_enc = layout.pvary(sae.W_enc, sae.b_enc)
    if parts > 1 and n % parts == 0:
        start = lax.axis_index(layout.data) * (n // parts)
        W_enc, b_enc = (lax.dynamic_slice_in_dim(a, start, n // parts) for a in (W_enc, b_enc))
        offset = offset + start
    return sae.replace(W_enc=W_enc, b_enc=b_enc), jnp.asarray(offset, jnp.int32)


def top_latents(sae: SAE, x, y, count: int, selection, signed: bool = False) -> np.ndarray:
    """The `count` latents whose values tell the classes y [R] of activations x [R, d] apart best, the best first.

    As sae-probes ranks them: by the difference of the classes' means, each latent divided by its mean absolute value
    where it is not 0. `signed`: what is larger in class 1 first.
    """
    x, y, weight = filled(x, y, MULTIPLE * jax.sharding.get_abstract_mesh().shape["data"])
    return np.asarray(_top_latents(sae, x, y, weight, min(count, sae.n), selection, signed, _rows(sae)))


def codes(sae: SAE, x, selection) -> Iterator[tuple[np.ndarray, ...]]:
    """(values [r, C], numbers [r, C] of their latents, scale [r] of what they write) of activations x [R, d], r rows at
    a time, so that codes of a dense family take no more memory than others.
    """
    devices = jax.sharding.get_abstract_mesh().shape["data"]
    rows = _rows(sae) * devices
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        padded, _, _ = filled(part, np.zeros(len(part)), min(MULTIPLE * devices, rows))
        yield tuple(np.asarray(a)[: len(part)] for a in _encode(sae, padded, selection))


def values_of(sae: SAE, x, numbers, selection) -> np.ndarray:
    """The values [R, A] of the latents `numbers` [A] on activations x [R, d]."""
    pick = lambda values, slots: np.stack([np.where(slots == i, values, 0).sum(1) for i in numbers], 1)
    return np.concatenate([pick(values, slots) for values, slots, _ in codes(sae, x, selection)])


def _rows(sae: SAE) -> int:
    """How many tokens' codes exist at once on a device."""
    return max(1, NUMBERS // activation_functions.get(sae.spec.activation).slots(sae.n, sae.spec.k, False))


@partial(jax.jit, static_argnames="selection")
def _encode(sae, x, selection):
    code = latents.encode(sae, jax.reshard(x, TOKENS), selection)
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), (code.values, code.numbers, code.scale))


@partial(jax.jit, static_argnames=("count", "selection", "signed", "rows"))
def _top_latents(sae, x, y, weight, count, selection, signed, rows):
    classes = jnp.stack([y, 1 - y], 1) * weight[:, None]
    totals, absolute, nonzero = latents.sums(sae, x, classes, selection, min(rows, latents.CHUNK))
    positive, negative = (total / jnp.maximum(size, 1) for total, size in zip(totals, classes.sum(0)))
    difference = (positive - negative) / (absolute / (nonzero + 1e-6) + 1e-6)
    difference = jax.reshard(difference if signed else jnp.abs(difference), REPLICATED)
    return lax.top_k(difference, count)[1]
