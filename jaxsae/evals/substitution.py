"""The next-token loss with other activations at the hook. b contexts, T positions, d width, V vocabulary."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.evals.downstream import cross_entropy, log_probabilities
from jaxsae.evals.latents import in_chunks
from jaxsae.evals.subject import Batch, Subject
from jaxsae.lm.model import LM
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.layout import REPLICATED

# Logits that exist at once on a device, as many times over as there are substitutes.
ON_CPU, ELSEWHERE = 1 << 19, 1 << 26


def summed(subject: Subject, batch: Batch, activations: dict) -> dict[str, np.ndarray]:
    """{name: sum of the cross-entropy over each context [b]} with each of `activations` [b, T, d] at the hook, and the
    number of predicted tokens of each context as "predicted".
    """
    tokens, real = subject.text(batch)
    return jax.device_get(_summed(subject.lm, tokens, real, activations, subject.hook))


def rises(sums: dict, original: str = "original") -> dict[str, float | None]:
    """Means of what `summed` gave, over all predicted tokens: {name: cross-entropy above that of the `original`}."""
    total = {name: np.sum(values, dtype=np.float64) for name, values in sums.items()}
    predicted = total.pop("predicted")
    start = total.pop(original)
    return {name: float((value - start) / predicted) if predicted else None for name, value in total.items()}


@partial(jax.jit, static_argnames="hook")
def _summed(lm, tokens, real, activations: dict, hook: str):
    sums = on_contexts(partial(_of_contexts, hook=hook), lm, tokens, real, activations)
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), sums)


def _of_contexts(lm: LM, tokens, real, activations: dict, hook: str) -> dict:
    at_once = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    chunk = max(1, at_once // (tokens.shape[1] * lm.config.vocab_size))

    def of_chunk(tokens, activations):
        log_p = log_probabilities(lm, tokens, hook, [*activations.values()])
        return {name: cross_entropy(log_p[i], tokens) for i, name in enumerate(activations)}

    losses = in_chunks(of_chunk, chunk, tokens, activations)
    # A token is predicted if it is real, from one that is.
    predicted = real[:, :-1] & real[:, 1:]
    sums = {name: jnp.where(predicted, loss[:, :-1], 0).sum(1) for name, loss in losses.items()}
    return sums | {"predicted": predicted.sum(1)}
