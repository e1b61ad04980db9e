"""What the language model loses when an autoencoder's reconstruction takes the activation's place (sec. 3.4).

b contexts, T positions. The substitution is at every position. CE in nats of the next token, so T - 1 positions have
one; what compares two distributions, as KL(original || substituted), at all T.
"""

import jax
import jax.numpy as jnp

from jaxsae.lm.divergence import kl
from jaxsae.lm.hooks import parse
from jaxsae.lm.model import LM, run, suffix

NAMES = ("ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered", "total_variation", "top1_consistency")


def logits_with(lm: LM, tokens, hook: str, activation):
    """Logits [b, T, V] of `tokens` with the activation at `hook` replaced by `activation` [b, T, d]."""
    if parse(hook, lm.config.n_layer).residual:
        return suffix(lm, activation, hook)
    return run(lm, tokens, {hook: lambda _: activation})


def cross_entropy(logits, tokens):
    """[b, T]: -log p(next token); 0 at the last position, which has no next token."""
    log_p = jax.nn.log_softmax(logits[:, :-1])
    ce = -jnp.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]
    return jnp.pad(ce, ((0, 0), (0, 1)))


def total_variation(original, substituted):
    """Half the sum of |p - q| over the vocabulary, of logits [..., V] each: [...]."""
    return jnp.abs(jax.nn.softmax(original) - jax.nn.softmax(substituted)).sum(-1) / 2


def top1_consistency(original, substituted):
    """Whether both, logits [..., V], have the same most probable token: [...], 0 or 1."""
    return (original.argmax(-1) == substituted.argmax(-1)).astype(original.dtype)


# Metrics of two predictions at a position.
COMPARISONS = {"kl": kl, "total_variation": total_variation, "top1_consistency": top1_consistency}


def losses(lm: LM, tokens, hook: str, x, substitutes: dict):
    """Per-token losses [b, T] of the original pass, of zero-ablation, and of each substitute [b, T, d] for x."""
    original = logits_with(lm, tokens, hook, x)
    out = {
        "ce_original": cross_entropy(original, tokens),
        "ce_zero": cross_entropy(logits_with(lm, tokens, hook, jnp.zeros_like(x)), tokens),
    }
    for name, xhat in substitutes.items():
        logits = logits_with(lm, tokens, hook, xhat)
        out[f"{name}ce_substituted"] = cross_entropy(logits, tokens)
        out |= {f"{name}{other}": compare(original, logits) for other, compare in COMPARISONS.items()}
    return out


def metrics(sums: dict, predicted: float, tokens: float, prefix: str = "") -> dict[str, float | None]:
    """Means of summed losses over `predicted` next tokens and `tokens` positions, for the substitute `prefix`."""
    if predicted == 0:
        return dict.fromkeys(NAMES)  # contexts of two tokens have no next token behind position 0
    original, zero = sums["ce_original"] / predicted, sums["ce_zero"] / predicted
    substituted = sums[f"{prefix}ce_substituted"] / predicted
    return {
        "ce_original": float(original),
        "ce_substituted": float(substituted),
        "delta_ce": float(substituted - original),
        "ce_recovered": float((zero - substituted) / (zero - original)),
        **{name: float(sums[f"{prefix}{name}"] / tokens) for name in COMPARISONS},
    }
