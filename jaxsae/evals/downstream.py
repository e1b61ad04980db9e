"""What the language model loses if an autoencoder's reconstruction takes the activation's place (sec. 3.4).

b contexts, T positions, V vocabulary. CE in nats of the next token, so at most T - 1 positions have one; what compares
two distributions, such as KL(original || substituted), at all T.
"""

import jax
import jax.numpy as jnp

from jaxsae.evals.reconstruction import ratio
from jaxsae.lm.hooks import parse
from jaxsae.lm.model import LM, run, suffix

NAMES = ("ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered", "total_variation", "top1_consistency")


def logits_with(lm: LM, tokens, hook: str, activation):
    """Logits [b, T, V] of `tokens` with the activation at `hook` replaced by `activation` [b, T, d]."""
    if parse(hook, lm.config.n_layer).residual:
        return suffix(lm, activation, hook)
    return run(lm, tokens, {hook: lambda _: activation})


def cross_entropy(log_p, tokens):
    """[b, T]: -log p(next token), of log-probabilities [b, T, V]; 0 at the last position, which has no next token."""
    ce = -jnp.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    return jnp.pad(ce, ((0, 0), (0, 1)))


def kl(log_p, log_q):
    """KL(p || q) in nats, of log-probabilities [..., V]: [...]."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def total_variation(log_p, log_q):
    """Half the sum of |p - q| over the vocabulary, of log-probabilities [..., V]: [...]."""
    return jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)).sum(-1) / 2


def top1_consistency(log_p, log_q):
    """Whether both log-probabilities [..., V] have the same most probable token: [...], 0 or 1."""
    return (log_p.argmax(-1) == log_q.argmax(-1)).astype(log_p.dtype)


# Metrics of two predictions at a position.
COMPARISONS = {"kl": kl, "total_variation": total_variation, "top1_consistency": top1_consistency}


def zero_is_shared(lm: LM, hook: str) -> bool:
    """Whether zeros at `hook` give the same predictions in every context: they leave nothing of it in the stream."""
    return parse(hook, lm.config.n_layer).residual


def log_probabilities(lm: LM, tokens, hook: str, activations: list):
    """Log-probabilities [len(activations), b, T, V] with each of `activations` [b, T, d] at `hook`, in one pass."""
    count = len(activations)
    logits = logits_with(lm, jnp.tile(tokens, (count, 1)), hook, jnp.concatenate(activations))
    return jax.nn.log_softmax(logits.reshape(count, -1, *logits.shape[1:]))


def losses(lm: LM, tokens, hook: str, x, substitutes: dict, zero=None, kept=None):
    """Losses [b, T] per token: of the original pass and of zero-ablation, and {name: losses} of each substitute
    [b, T, d] for x. `zero` [1, T, V] are the log-probabilities of zero-ablation, if they are shared and known; else
    zeros are put in at the tokens in `kept` [b, T], all if None.
    """
    zeros = jnp.zeros_like(x) if kept is None else jnp.where(kept[..., None], 0, x)
    unknown = [] if zero is not None else [zeros]
    original, *new = log_probabilities(lm, tokens, hook, [x, *substitutes.values(), *unknown])
    zero = new.pop() if zero is None else jnp.broadcast_to(zero, original.shape)
    shared = {"ce_original": cross_entropy(original, tokens), "ce_zero": cross_entropy(zero, tokens)}
    each = {}
    for name, log_q in zip(substitutes, new):
        each[name] = {other: compare(original, log_q) for other, compare in COMPARISONS.items()}
        each[name]["ce_substituted"] = cross_entropy(log_q, tokens)
    return shared, each


def metrics(shared: dict, own: dict, predicted: float, tokens: float) -> dict[str, float | None]:
    """Means of summed losses, those of all substitutes and those of one, over `predicted` next tokens and `tokens`
    positions.
    """
    if predicted == 0:
        return dict.fromkeys(NAMES)  # contexts of two tokens have no next token after position 1
    original, zero = shared["ce_original"] / predicted, shared["ce_zero"] / predicted
    substituted = own["ce_substituted"] / predicted
    return {
        "ce_original": float(original),
        "ce_substituted": float(substituted),
        "delta_ce": float(substituted - original),
        # None if zeros change nothing, because they are put in nowhere.
        "ce_recovered": ratio(zero - substituted, zero - original),
        **{name: float(own[name] / tokens) for name in COMPARISONS},
    }
