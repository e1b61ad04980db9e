"""What an objective is to the rest of the package. B tokens, d width, b contexts of T tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """A batch ready to train on; no gradient flows into it. x goes in, y should come out: y is x for an autoencoder."""

    x: Any  # [B@data, d] normalised
    y: Any  # [B@data, d_out] normalised
    mean: Any  # [B@data] (of a crosscoder [B@data, sections]) what was subtracted from each token of y
    scale: Any  # like mean: what each token of y was divided by
    original: Any = None  # {hook point: [b, T, d]}: streams of the unchanged language model, where the objective asks


@dataclass(frozen=True)
class Objective:
    """What a reconstruction is compared with.

    prepare(batch, lm, scale_out=None)
                            -> Batch; normalises, and runs what the language model computes without the autoencoder.
                            Under `--micro-batches` it sees one piece. `scale_out` is that of a transcoder.
    terms(xhat, batch, lm, mse_scale, variances, later)
                            -> {name: scalar}, means over tokens, of the reconstruction xhat [B@data, d] (normalised).
                            `later`: functions of autoencoders further along, each {stream [b, T, d]} -> {stream}.
    loss(terms, batch_terms)
                            -> scalar. `batch_terms` are the terms of the whole batch, without gradient.
    variances(batch)        -> what `terms` measures errors in, over the whole batch; None if it needs nothing.
    needs_batch_terms       whether `loss` reads `batch_terms`, so that micro-batches take one more forward pass
    """

    prepare: Callable
    terms: Callable
    loss: Callable
    variances: Callable = lambda batch: None
    needs_batch_terms: bool = False
    sites: tuple = ()  # hook points of the autoencoders, first to last; empty where the objective knows none


def squared_error(xhat, y, mse_scale):
    """Mean over B and d of (xhat - y)^2, times `mse_scale` (Gao et al. 2024, app. A.6: 1 for predicting the mean)."""
    return mse_scale * jnp.mean((xhat - y) ** 2)
