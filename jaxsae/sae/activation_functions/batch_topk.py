"""BatchTopK: keep the B k largest positive pre-activations of a whole batch of B tokens (Bussmann et al. 2024).

The batch is that of all devices. Outside training a latent is kept if it exceeds a threshold, the same for all latents,
that training estimates: the mean of the smallest value kept, over the last tenth of the steps or so, at most a thousand
of them. (Over all steps it would be biased, because it changes as weights do.)
"""

import jax
import jax.numpy as jnp

from jaxsae.sae.activation_functions.interface import ActivationFunction, Count
from jaxsae.sae.kth_largest import kth_largest
from jaxsae.sae.support import Support

# A token has at most 16 k latents: a bound for memory, far above what tokens of language models ask for.
SLOTS_PER_K = 16
# The threshold is an average over this share of the steps made, and over at most this many.
EMA_FRACTION, EMA_MAX_STEPS = 1 / 10, 1000


def _support(top, view):
    cap = SLOTS_PER_K * view.k
    # One candidate more than is kept shows whether the cap holds.
    pre, indices = top(SLOTS_PER_K * view.spec.k + 1)
    if view.most is not None:
        pre = jnp.where(jnp.arange(pre.shape[1]) <= cap, pre, -jnp.inf)
    if not view.training:
        (threshold,) = view.layout.pvary(view.extra["threshold"])
        above = pre > jnp.maximum(threshold[indices], 0)
        return Support(pre, indices, above & (pre >= _cut(pre, above, cap, view.layout)[:, None]))

    n_kept = view.k * view.layout.sum_tokens(len(pre))
    smallest = _smallest(pre, n_kept, view.layout)
    cut = _cut(pre, (pre > 0) & (pre >= smallest), cap, view.layout)
    # What tokens at the cap leave out, the others may have.
    within = jnp.where(pre >= cut[:, None], pre, 0)
    capped = view.layout.sum_tokens((cut > 0).sum()) > 0
    smallest = jnp.where(capped, _smallest(within, n_kept, view.layout, capped), smallest)
    return Support(pre, indices, (within > 0) & (within >= smallest))


def _smallest(pre, n_kept, layout, enough=True):
    """The `n_kept`-th largest of all positive numbers of pre [B, c], over all shards; 0 if there are fewer."""
    at_least = lambda t: layout.sum_tokens(layout.sum_latents((pre >= t).sum())) >= n_kept
    return kth_largest(at_least, jnp.zeros_like(pre, shape=()), enough)


def _cut(pre, above, cap: int, layout):
    """The `cap`-th largest of pre [B, c] of each token over all shards, [B]; 0 for all if no token has more `above`."""
    count = layout.sum_latents(above.sum(1))
    at_least = lambda t: layout.sum_latents((pre >= t[:, None]).sum(1)) >= cap
    capped = layout.sum_tokens((count > cap).sum()) > 0
    cut = kth_largest(at_least, jnp.zeros_like(count, pre.dtype), capped)
    return jnp.where(count > cap, cut, 0)


def _capped(support, spec, layout):
    """Which tokens [B] have latents above the smallest that the batch keeps, and not all of them."""
    del spec
    smallest = layout.min_all(jnp.where(support.mask, support.pre, jnp.inf).min())
    left_out = (support.pre >= smallest) & ~support.mask
    return layout.sum_latents(left_out.sum(1)) > 0


def _update_extra(extra, min_active, step):
    # The first batch counts whole, so that the mean does not start from any number of its own.
    first = 1 / EMA_FRACTION
    weight = jnp.maximum(first / (step + first), 1 / EMA_MAX_STEPS).astype(min_active.dtype)
    old = extra["threshold"]
    return {"threshold": old + jnp.where(jnp.isfinite(min_active), weight * (min_active - old), 0)}


CAPPED = Count(
    _capped,
    limit=0.001,
    warning=f"tokens asked for more than {SLOTS_PER_K} k latents and lost the smallest of them: give a larger --sae.k",
)

TYPE = ActivationFunction(
    value=lambda preacts, options: jax.nn.relu(preacts.pre),
    init=lambda key, n, dtype, own: {"threshold": jnp.zeros(n, dtype)},
    support=_support,
    slots=lambda n, k, training: min(n, SLOTS_PER_K * k),
    update_extra=_update_extra,
    counts={"capped_tokens": CAPPED},
    couples_batch=True,
    value_is_preact=True,
)
