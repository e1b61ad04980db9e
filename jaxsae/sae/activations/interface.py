"""What an activation function is to the rest of the package: a record of pure functions.

B tokens, n latents of this shard, c slots of a code. A sparse family first chooses a support, without gradient, and
works on its slots [B, c]; a dense one has a slot for every latent, c = n. Extra arrays (thresholds, say) and decoder
norms come as one number for each slot, or for each latent [n] where c = n.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
class Terms:
    """What an activation function is trained with; it changes no value of a trained autoencoder."""

    penalty: str = ""  # name of the sparsity term; "" is the activation function's own
    p: float = 1.0  # of the penalty "lp"
    bandwidth: float = 0.001  # of the straight-through gradients of thresholds
    tanh_scale: float = 4.0  # of the penalty "tanh"


PLAIN = Terms()


@dataclass(frozen=True)
class Slots:
    """What the functions of an activation function see: pre-activations and what belongs to their latents."""

    p: Any  # [B, c] pre-activations, with gradient
    b_enc: Any  # [B, c] or [n], part of p
    extra: dict  # [B, c] or [n] each
    norms: Any  # [B, c] or [n], of the decoder's rows


def _nothing(key, n, dtype):
    del key, n, dtype
    return {}


@dataclass(frozen=True)
class Activation:
    """One family.

    value(slots, terms)                 values [B, c]
    init(key, n, dtype)                 the activation function's own arrays, each with a leading latent axis
    support(top, extra, spec, layout, training)
                                        the Support of a sparse family; top(k) gives the k largest pre-activations of
                                        each token on this shard and their indices, [B, min(k, n)] in falling order.
                                        None: a dense family
    views(support, spec, layout)        masks [B, c] of which each one's reconstruction is held against the objective,
                                        with these `weights`, the autoencoder's own first; None: only its own
    frozen(slots)                       values [B, c] whose reconstruction, by a decoder that gets no gradient, is held
                                        against the input; None: there is no such term
    penalties                           names of the sparsity terms (penalties.py) that it may have, the default first
    observe(extra, seen, step)          the extra arrays after a step that saw `seen`, the least value above 0 of the
                                        batch; None: they do not change but by their gradient
    whole_batch                         whether the support of a token depends on the others of its batch
    rates                               {name: factor} on the learning rate of extra arrays
    above(theta)                        the extra arrays with which a latent is active above theta [n]; None: there are
                                        no thresholds
    at_most_k                           whether no token has more than k active latents outside training
    plain                               whether values are the pre-activations themselves, where they are not 0
    """

    value: Callable
    init: Callable = _nothing
    support: Callable | None = None
    views: Callable | None = None
    weights: tuple[float, ...] = (1.0,)
    frozen: Callable | None = None
    penalties: tuple[str, ...] = ()
    observe: Callable | None = None
    whole_batch: bool = False
    rates: Mapping[str, float] = field(default_factory=dict)
    above: Callable | None = None
    at_most_k: bool = False
    plain: bool = False
