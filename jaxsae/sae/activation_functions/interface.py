"""What an activation function is to the rest of the package: a record of pure functions.

B tokens, n latents of this shard, c slots of a code. A sparse family first chooses a support, without gradient, and
works on its slots [B, c]; a dense one has a slot for every latent, c = n. Extra arrays (thresholds, say) and decoder
norms come as one number for each slot, or for each latent [n] if c = n.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxsae.flags import NoFlags
from jaxsae.sae.activation_functions.options import Penalty
from jaxsae.sae.all_latents import AllLatents
from jaxsae.sae.layout import Layout


@dataclass(frozen=True)
class Preacts:
    """What the functions of a family see: pre-activations and what belongs to their latents."""

    pre: Any  # [B, c] pre-activations, with gradient
    b_enc: Any  # [B, c] or [n], a summand of pre
    extra: dict  # [B, c] or [n] each
    norms: Any  # [B, c] or [n], of the decoder's rows; 1 if they are fixed; of a crosscoder sums over sections


@dataclass(frozen=True)
class ShardView:
    """What `support` sees of one shard, beside its candidates."""

    extra: dict  # [n] each
    norms: Any  # [n], of the decoder's rows; 1 if they are fixed
    spec: Any  # sae.types.Spec
    layout: Layout
    training: bool
    k: Any  # latents kept per token: spec.k, or a traced number up to it

    @property
    def most(self) -> int | None:
        """The bound of a traced k; None if k is not traced."""
        return None if isinstance(self.k, int) else self.spec.k


@dataclass(frozen=True)
class Count:
    """What may happen to a token in training. The share of tokens is logged; if it is above `limit`, stderr gets once
    "(share) of (warning)".
    """

    each: Callable  # (support, spec, layout) -> [B] which tokens
    limit: float
    warning: str


def _no_arrays(key, n, dtype, own):
    del key, n, dtype, own
    return {}


def every_latent(top, view):
    """The support of a dense family."""
    del top, view
    return AllLatents()


@dataclass(frozen=True)
class ActivationFunction:
    """One family.

    value(preacts, options)         values [B, c]
    init(key, n, dtype, own)        the family's own arrays, each with a leading latent axis
    support(top, view)              the Support of each token; top(k, scale=None) gives the k largest pre-activations
                                    (times scale [n]) on this shard and their indices, [B, min(k, n)] in falling order
    slots(n, k, training)           slots that a token needs, over all shards; FLOP counts and plans ask it
    views(support, spec, layout)    masks [B, c], one for each reconstruction that training compares, with these
                                    `weights`, the autoencoder's own first; None: only its own
    gate_values(preacts)            values [B, c] of an auxiliary reconstruction of x through a stop-gradient decoder
    counts                          {metric: Count} of what happens to tokens in training
    penalties                       the sparsity terms that it may have by name, the default first
    update_extra(extra, min_active, step)
                                    its arrays after a step; min_active is the smallest value above 0 of the batch
    couples_batch                   whether the support of a token depends on the other tokens of its batch
    rate                            the best learning rate, of TopK's, as far as it was searched for
    lr_multipliers(own)             {name: factor} on the learning rate of its arrays
    from_threshold(theta)           its arrays so that a latent is active above theta [n]; None: it has no thresholds
    at_most_k                       whether no token has more than k active latents outside training
    value_is_preact                 whether values are the pre-activations themselves if they are not 0
    Config                          a frozen dataclass of its own flags, `--sae.NAME.FLAG`
    """

    value: Callable
    init: Callable = _no_arrays
    support: Callable = every_latent
    slots: Callable = lambda n, k, training: n
    views: Callable | None = None
    weights: tuple[float, ...] = (1.0,)
    gate_values: Callable | None = None
    counts: Mapping[str, Count] = field(default_factory=dict)
    penalties: Mapping[str, Penalty] = field(default_factory=dict)
    update_extra: Callable | None = None
    couples_batch: bool = False
    rate: float = 1.0
    lr_multipliers: Callable = lambda own: {}
    from_threshold: Callable | None = None
    at_most_k: bool = False
    value_is_preact: bool = False
    Config: type = NoFlags

    @property
    def dense(self) -> bool:
        """Whether every token has a slot for every latent."""
        return self.support is every_latent
