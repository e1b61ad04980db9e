"""Which latents are alive, and how near their directions are to others (Braun et al. 2024, sec. 3.1, 3.3.3, app. G).

n latents, d width. Cosines are signed. "Nearest" is not symmetric: it is asked for the rows of the first dictionary.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsae.evals import latents
from jaxsae.lm.model import LM, prefix
from jaxsae.precision import matmul
from jaxsae.sae.struct import SAE

# Rows whose cosines with a whole dictionary exist at once.
BLOCK = 1024


def frequencies(lm: LM, sae: SAE, hook: str, tokens, batch: int = 8) -> np.ndarray:
    """Share of the tokens [b, T] on which each latent has a value other than 0: float64 [n]. Position 0 counts too."""
    total = sum(np.asarray(_counts(lm, sae, part, hook), np.int64) for part in latents.batches(tokens, batch))
    return total / np.size(tokens)


def alive(frequencies) -> np.ndarray:
    """Indices of the latents that were active at least once (the paper: over 500 thousand tokens, weights at rest)."""
    return np.flatnonzero(np.asarray(frequencies) > 0)


def directions(sae: SAE, indices=None):
    """What latents write, as unit rows: [n, d], or those of `indices` [a]: [a, d]."""
    W = sae.W_dec if indices is None else sae.W_dec[jnp.asarray(indices)]
    return W / jnp.maximum(jnp.sqrt((W * W).sum(1, keepdims=True)), 1e-12)


def nearest(a, b):
    """The largest cosine of each row of a [n, d] with a row of b [m, d], unit rows both: [n]."""
    return _nearest(a, b, False)


def nearest_other(a):
    """The largest cosine of each unit row of a [n, d] with another row of a: [n] (-inf where there is no other)."""
    return _nearest(a, a, True)


@partial(jax.jit, static_argnames="hook")
def _counts(lm, sae, tokens, hook):
    x = prefix(lm, tokens, hook)
    x = x.reshape(-1, x.shape[-1])
    return latents.counts(sae, x, jnp.ones(len(x), bool))


@partial(jax.jit, static_argnames="others")
def _nearest(a, b, others: bool):
    n, d = a.shape
    rows = min(BLOCK, n)

    def block(part):
        a, number = part
        cosines = matmul(a, b.T)
        if others:
            cosines = jnp.where(number[:, None] == jnp.arange(len(b)), -jnp.inf, cosines)
        return cosines.max(1)

    parts = jnp.pad(a, ((0, -n % rows), (0, 0))).reshape(-1, rows, d)
    numbers = jnp.arange(parts.shape[0] * rows).reshape(-1, rows)
    return lax.map(block, (parts, numbers)).reshape(-1)[:n]
