"""BatchTopK: keep the B k largest positive pre-activations of a whole batch of B tokens (Bussmann et al. 2024).

The batch is that of all devices. Outside training a latent is kept if it exceeds a threshold, the same for all latents,
that training estimates: the mean of the smallest value kept, over the last tenth of the steps or so, at most a thousand
of them. (Over all steps it would be biased, because it changes as weights do.)
"""

import jax
import jax.numpy as jnp

from jaxsae.sae.activation_functions.interface import ActivationFunction
from jaxsae.sae.kth_largest import kth_largest
from jaxsae.sae.support import Support

# A token has at most 16 k latents: a bound for memory, far above what tokens of language models ask for.
SLOTS_PER_K = 16
# The threshold is an average over this share of the steps made, and over at most this many.
EMA_FRACTION, EMA_MAX_STEPS = 1 / 10, 1000


def _support(top, view):
    pre, indices = top(SLOTS_PER_K * view.spec.k)
    if not view.training:
        (threshold,) = view.layout.pvary(view.extra["threshold"])
        return Support(pre, indices, pre > jnp.maximum(threshold[indices], 0))

    def at_least(t):
        return view.layout.sum_tokens(view.layout.sum_latents((pre >= t).sum())) >= n_kept

    n_kept = view.spec.k * view.layout.sum_tokens(len(pre))
    smallest = kth_largest(at_least, jnp.zeros_like(pre, shape=()))
    return Support(pre, indices, (pre > 0) & (pre >= smallest))


def _update_extra(extra, min_active, step):
    # The first batch counts whole, so that the mean does not start from any number of its own.
    first = 1 / EMA_FRACTION
    weight = jnp.maximum(first / (step + first), 1 / EMA_MAX_STEPS).astype(min_active.dtype)
    old = extra["threshold"]
    return {"threshold": old + jnp.where(jnp.isfinite(min_active), weight * (min_active - old), 0)}


TYPE = ActivationFunction(
    value=lambda preacts, options: jax.nn.relu(preacts.pre),
    init=lambda key, n, dtype, own: {"threshold": jnp.zeros(n, dtype)},
    support=_support,
    slots=lambda n, k, training: min(n, SLOTS_PER_K * k),
    update_extra=_update_extra,
    couples_batch=True,
    value_is_preact=True,
)
