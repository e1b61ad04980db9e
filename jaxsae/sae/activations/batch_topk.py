"""BatchTopK: keep the B k largest positive pre-activations of a whole batch of B tokens (Bussmann et al. 2024).

The batch is that of all devices. A token has at most MOST k latents. Outside training a latent is kept where it
exceeds a threshold, the same for all latents, that training estimates: the mean of the least value kept, over the last
tenth of the steps or so, at most a thousand of them. (Over all steps it would be biased: it changes as weights do.)
"""

import jax
import jax.numpy as jnp

from jaxsae.sae.activations.interface import Activation, Support
from jaxsae.sae.threshold import reached_by

MOST = 16
# Most steps that the threshold is averaged over, and the share of those made, as one over it.
SPAN, SHARE = 1000, 10


def _support(top, extra, spec, layout, training):
    z, i = top(MOST * spec.k)
    if not training:
        (threshold,) = layout.vary(extra["threshold"])
        return Support(z, i, z > jnp.maximum(threshold[i], 0))

    def reached(t):
        return layout.sum_tokens(layout.sum_latents((z >= t).sum())) >= places

    places = spec.k * layout.sum_tokens(len(z))
    least = reached_by(reached, jnp.zeros_like(z, shape=()))
    return Support(z, i, (z > 0) & (z >= least))


def _observe(extra, seen, step):
    # The first one seen counts whole, so that the mean does not start from any number of its own.
    weight = jnp.maximum(SHARE / (step + SHARE), 1 / SPAN).astype(seen.dtype)
    old = extra["threshold"]
    return {"threshold": old + jnp.where(jnp.isfinite(seen), weight * (seen - old), 0)}


ACTIVATION = Activation(
    value=lambda slots, terms: jax.nn.relu(slots.p),
    init=lambda key, n, dtype: {"threshold": jnp.zeros(n, dtype)},
    support=_support,
    observe=_observe,
    whole_batch=True,
    plain=True,
)
