"""What the language model loses if an autoencoder's reconstruction takes the activation's place (sec. 3.4).

b contexts, T positions, V vocabulary. CE in nats of the next token, so at most T - 1 positions have one; what compares
two distributions, such as KL(original || substituted), at all T.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.evals.reconstruction import ratio
from jaxsae.lm.hooks import parse
from jaxsae.lm.model import LM, run, suffix

# Logits that exist at once on a device, a few times over: on CPUs few enough for their caches.
ON_CPU, ELSEWHERE = 1 << 19, 1 << 26

NAMES = ("ce_original", "ce_substituted", "ce_zero", "delta_ce", "kl", "kl_zero", "ce_recovered")
NAMES += ("total_variation", "top1_consistency")


def contexts_at_once(lm: LM, T: int) -> int:
    """How many contexts of T tokens a device predicts at once."""
    logits = ON_CPU if jax.default_backend() == "cpu" else ELSEWHERE
    return max(1, logits // (T * lm.config.vocab_size))


def logits_with(lm: LM, tokens, hook: str | tuple[str, ...], activation):
    """Logits [b, T, V] of `tokens` with the activation at `hook` replaced by `activation` [b, T, d]; those at several
    hook points by its equal parts.
    """
    if not isinstance(hook, str):
        parts = dict(zip(hook, jnp.split(activation, len(hook), -1), strict=True))
        return run(lm, tokens, {name: lambda _, part=part: part for name, part in parts.items()})
    if parse(hook, lm.config.n_layer).residual:
        return suffix(lm, activation, hook)
    return run(lm, tokens, {hook: lambda _: activation})


def cross_entropy(log_p, tokens):
    """[b, T]: -log p(next token), of log-probabilities [b, T, V]; 0 at the last position, which has no next token."""
    ce = -jnp.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    return jnp.pad(ce, ((0, 0), (0, 1)))


def predicted(real):
    """Whether a token that is no padding follows a token that is none, [b, T], from which are none, `real` [b, T]."""
    return jnp.pad(real[:, :-1] & real[:, 1:], ((0, 0), (0, 1)))


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


def zero_is_shared(lm: LM, hook: str | tuple[str, ...]) -> bool:
    """Whether zeros at `hook` give the same predictions in every context: they leave nothing of it in the stream."""
    return isinstance(hook, str) and parse(hook, lm.config.n_layer).residual


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
    shared["kl_zero"] = kl(original, zero)
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
    means = {}
    if "ce_mean" in shared:
        mean = shared["ce_mean"] / predicted
        means = {"ce_mean": float(mean), "ce_recovered_mean": ratio(mean - substituted, mean - original)}
    return means | {
        "ce_original": float(original),
        "ce_substituted": float(substituted),
        "delta_ce": float(substituted - original),
        "ce_zero": float(zero),
        "kl_zero": float(shared["kl_zero"] / tokens),
        # None if zeros change nothing, because they are put in nowhere.
        "ce_recovered": ratio(zero - substituted, zero - original),
        **{name: float(own[name] / tokens) for name in COMPARISONS},
    }


def compute_equivalent(loss: float, compute, losses) -> float | None:
    """The compute after which a training run first had `loss`, from its losses [R] after compute [R] (sec. 3.4).

    Interpolated on logarithms of both between the rows around it; rows may come in any order. None for a loss that is
    outside the table: above that of the least compute, or below all.

        compute_equivalent(2.5, [1, 10, 100], [5, 2.5, 1.25])  # 10.0
    """
    compute, losses = np.asarray(compute, np.float64), np.asarray(losses, np.float64)
    order = np.argsort(compute, kind="stable")
    compute, losses = compute[order], losses[order]
    reached = np.flatnonzero(losses <= loss)
    if not len(reached) or loss > losses[0]:
        return None
    at = reached[0]
    if losses[at] == loss:
        return float(compute[at])
    # The row before has a higher loss: it is not reached there.
    way = np.log(losses[at - 1] / loss) / np.log(losses[at - 1] / losses[at])
    return float(compute[at - 1] * (compute[at] / compute[at - 1]) ** way)
