"""Logistic probes of one number, for many numbers at once. N examples, m numbers (latents, say).

    probes = fit(z, y)              # z [N, m], y [N] of 0 and 1 -> Probes(w [m], b [m], loss [m])
    loss(probes, z_test, y_test)    # [m], in nats

p(y = 1) = sigmoid(w z + b). Newton's method with both parameters' whole 2 x 2 Hessian, from w = b = 0; a step that does
not lower the loss is shortened. Each z is standardised first, and there PENALTY / 2 (w^2 + b^2) is added to the mean
loss: where z separates the classes, or there is one class alone, the loss has no minimum without it. It moves the loss
of other probes by less than float32 shows. A constant z gets w = 0.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PENALTY = 1e-6
ITERATIONS = 60


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Probes:
    """m probes: p(y = 1) = sigmoid(w z + b), z in its own units."""

    w: Any  # [m]
    b: Any  # [m]
    loss: Any  # [m] mean negative log-likelihood of the examples that they were fitted to, nats, without the penalty


@jax.jit
def fit(z, y, weight=None) -> Probes:
    """The probe of each column of z [N, m] for the labels y [N] (0 or 1, or bool).

    `weight` [N] is how much each example counts; default: all alike.
    """
    z, y, weight = _arrays(z, y, weight)
    # Sums, not products: some platforms round the operands of those.
    average = lambda a: (weight[:, None] * a).sum(0)
    mean = average(z)
    std = jnp.sqrt(average((z - mean) ** 2))
    # What rounding leaves of a constant is no information.
    std = jnp.where(std > 8 * jnp.finfo(z.dtype).eps * jnp.abs(mean), std, jnp.inf)
    (w, b), least = _newton((z - mean) / std, y, weight)
    loss = least - PENALTY / 2 * (w * w + b * b)
    return Probes(w / std, b - w * jnp.where(jnp.isinf(std), 0, mean / std), loss)


@jax.jit
def loss(probes: Probes, z, y, weight=None):
    """The mean negative log-likelihood of labels y [N] by each probe on its column of z [N, m]: [m], in nats."""
    z, y, weight = _arrays(z, y, weight)
    return (weight[:, None] * losses(z * probes.w + probes.b, y[:, None])).sum(0)


def losses(logits, y):
    """-log p(y) of labels y (0 or 1) with p(y = 1) = sigmoid(logits), of any shapes that broadcast; nats."""
    return jax.nn.softplus((1 - 2 * y) * logits)


def _arrays(z, y, weight):
    z = jnp.asarray(z, jnp.result_type(float))
    y = jnp.asarray(y, z.dtype)
    weight = jnp.ones_like(y) if weight is None else jnp.asarray(weight, z.dtype)
    return z, y, weight / weight.sum()


def _newton(s, y, weight):
    """(w [m], b [m]) and the penalised loss [m], for standardised s [N, m]."""
    enough = 4 * jnp.finfo(s.dtype).eps
    measure = partial(_measure, s, y, weight)
    zero = jnp.zeros_like(s[0])
    start = zero, zero
    f, direction, decrement = measure(start)

    def unfinished(state):
        *_, decrement, _, count = state
        return (decrement > enough).any() & (count < ITERATIONS)

    def step(state):
        at, f, direction, decrement, length, count = state
        trial = tuple(a - length * d for a, d in zip(at, direction))
        f_trial, direction_trial, decrement_trial = measure(trial)
        better = f_trial <= f - 1e-4 * length * decrement
        pick = lambda new, old: jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
        at, f, direction = pick((trial, f_trial, direction_trial), (at, f, direction))
        # Where no step is short enough, rounding hides what is left to gain.
        length = jnp.where(better, 1, length / 4)
        decrement = jnp.where(better, decrement_trial, jnp.where(length < 1e-3, 0, decrement))
        return at, f, direction, decrement, length, count + 1

    state = start, f, direction, decrement, jnp.ones_like(zero), 0
    at, f, *_ = lax.while_loop(unfinished, step, state)
    return at, f


def _measure(s, y, weight, at):
    """The penalised loss [m], Newton's direction (w, b), [m] each, and how much it promises: twice the gain [m]."""
    w, b = at
    signs = (1 - 2 * y)[:, None]
    v = signs * (s * w + b)
    e = jnp.exp(-jnp.abs(v))
    share = weight[:, None] * jnp.where(v > 0, 1, e) / (1 + e)
    parts = (
        weight[:, None] * (jnp.maximum(v, 0) + jnp.log1p(e)),
        signs * share,
        share * jnp.where(v > 0, e, 1) / (1 + e),
    )
    # Computed once for the six sums, not once for each.
    f, r, h = lax.optimization_barrier(parts)
    gw, gb = (r * s).sum(0) + PENALTY * w, r.sum(0) + PENALTY * b
    hww, hwb, hbb = (h * s * s).sum(0) + PENALTY, (h * s).sum(0), h.sum(0) + PENALTY
    # Their product in float32 may be below zero where one example carries all.
    determinant = jnp.maximum(hww * hbb - hwb * hwb, PENALTY * jnp.maximum(hww, hbb))
    direction = (hbb * gw - hwb * gb) / determinant, (hww * gb - hwb * gw) / determinant
    decrement = gw * direction[0] + gb * direction[1]
    return f.sum(0) + PENALTY / 2 * (w * w + b * b), direction, decrement
