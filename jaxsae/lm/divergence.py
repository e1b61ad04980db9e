"""How far a language model's predictions are from its own, after something was put in its stream. V vocabulary.

KL(original || substituted), in nats, of the distributions of the next token: the direction of Braun et al. 2024's code
(their formula, and their docstring, have it the other way round).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.lm.model import LM, unembed

# Tokens whose logits exist at once.
CHUNK = 512


def kl(original, substituted):
    """Of logits [..., V] each: [...]."""
    p, q = jax.nn.log_softmax(original), jax.nn.log_softmax(substituted)
    return (jnp.exp(p) * (p - q)).sum(-1)


def kl_of_streams(lm: LM, original, substituted, chunk: int = CHUNK, reverse: bool = False):
    """Of what the unembedding reads (`lm.final`), [N, d] each: [N]; `reverse` is KL(substituted || original).

    The logits of `chunk` tokens exist at once, and are computed again for the gradient, which reaches `substituted`
    alone: neither [N, V] nor a gradient of the language model is ever made.
    """
    lm, original = lax.stop_gradient((lm, original))
    n, d = original.shape
    chunk = min(chunk, n)
    # Of two rows of zeros the distributions are the same.
    parts = lambda a: jnp.pad(a, ((0, -n % chunk), (0, 0))).reshape(-1, chunk, d)
    divergence = (lambda p, q: kl(q, p)) if reverse else kl
    some = jax.checkpoint(lambda pair: divergence(unembed(lm, pair[0]), unembed(lm, pair[1])))
    return lax.map(some, (parts(original), parts(substituted))).reshape(-1)[:n]
