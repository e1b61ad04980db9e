"""What an activation function is to the rest of the package: a record of pure functions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax


@partial(jax.tree_util.register_dataclass, data_fields=["z", "indices", "mask"], meta_fields=[])
@dataclass(frozen=True)
class Support:
    """The candidates of each token on one shard; those in use come first in each row."""

    z: Any  # [B, c] their pre-activations, as exact as the selection
    indices: Any  # [B, c] int32, rows of the shard's weights
    mask: Any  # [B, c] which of them are in use


@dataclass(frozen=True)
class Activation:
    """B tokens, n latents of this shard, c slots of a code.

    init(key, n)                      the activation function's own arrays, each with a leading latent axis
    support(top, extra, spec, layout) the Support; top(k) gives the k largest pre-activations of each token on this
                                      shard and their indices, [B, min(k, n)] in falling order, without gradient
    value(p, spec)                    values [B, c] of the pre-activations p [B, c] at the support; differentiable
    """

    init: Callable
    support: Callable
    value: Callable
