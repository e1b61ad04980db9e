"""Logistic regression on several numbers with a squared penalty, on the host in float64. N examples, p numbers."""

import numpy as np

# Weights of the penalty that the full linear probe chooses from, from strong to weak, and how.
TOLERANCE = 1e-9
STRENGTHS, FOLDS = tuple(10.0 ** np.arange(1, -5, -1)), 3
# sae-probes' inverse strengths of the k-sparse probe, in its order.
INVERSE_STRENGTHS = tuple(np.logspace(5, -5, 10))


def fit(x, y, strength: float, start=None, balanced: bool = False):
    """The parameters [p + 1], the intercept last, that minimise mean(-log p(y)) + strength / 2 ||w||^2.

    x [N, p], y [N] of 0 and 1; the intercept is free. `balanced`: both classes weigh the same. Newton's method from
    `start` (default: zeros), with shortened steps.
    """
    A, y = np.column_stack([x, np.ones(len(x))]).astype(np.float64), np.asarray(y, np.float64)
    weight = np.where(y > 0, 0.5 / max(y.sum(), 1), 0.5 / max((1 - y).sum(), 1)) if balanced else 1 / len(y)
    # An intercept without any penalty has no end if there is one class alone.
    penalty = np.append(np.full(A.shape[1] - 1, strength), 1e-9)
    theta = np.zeros(A.shape[1]) if start is None else start
    total = lambda theta: (weight * losses(A @ theta, y)).sum() + penalty @ theta**2 / 2
    value = total(theta)
    for _ in range(100):
        p = sigmoid(A @ theta)
        gradient = A.T @ (weight * (p - y)) + penalty * theta
        H = (A * (weight * p * (1 - p))[:, None]).T @ A + np.diag(penalty)
        step = np.linalg.lstsq(H, gradient, rcond=None)[0] if len(H) < 16 else np.linalg.solve(H, gradient)
        promised, length = gradient @ step, 1.0
        if promised < TOLERANCE:
            break
        while (new := total(theta - length * step)) > value - 1e-4 * length * promised and length > 1e-4:
            length /= 4
        if new >= value:
            break
        theta, value = theta - length * step, new
    return theta


def logits(theta, x):
    """[N] of x [N, p]."""
    return x @ theta[:-1] + theta[-1]


def full_probe(x, y, x_test):
    """Logits [M] of x_test [M, p] by a probe that is fitted to x [N, p] and y [N], in any order of examples.

    The numbers are standardised; the strength is that of STRENGTHS with the least loss in cross-validation, examples
    dealt out to FOLDS folds by class.
    """
    x, x_test = (np.asarray(a, np.float64) for a in (x, x_test))
    mean, std = x.mean(0), x.std(0)
    scale = np.where(std > 1e-7 * np.abs(mean), std, np.inf)
    x, x_test = (x - mean) / scale, (x_test - mean) / scale
    if x.shape[1] > len(x):
        # The penalised solution lies in the span of the examples, and a rotation changes no penalty.
        basis = np.linalg.svd(x, full_matrices=False)[2]
        x, x_test = x @ basis.T, x_test @ basis.T
    fold = np.empty(len(y), int)
    fold[np.argsort(y, kind="stable")] = np.arange(len(y)) % FOLDS
    held_out = np.zeros(len(STRENGTHS))
    for number in range(FOLDS):
        inside, theta = fold != number, None
        for i, strength in enumerate(STRENGTHS):
            theta = fit(x[inside], y[inside], strength, theta)
            held_out[i] += losses(logits(theta, x[~inside]), y[~inside]).sum()
    return logits(fit(x, y, STRENGTHS[held_out.argmin()]), x_test)


def sparse_probe(x, y, x_test):
    """Logits [M] of x_test [M, k] by sae-probes' probe of a few latents, fitted to x [N, k] and y [N].

    Latents as they are; the strength with the best AUC on the last fifth of the examples (at most 100; with fewer than
    128 examples on average over 6 folds by class), the weakest of equals; then fitted to all.
    """
    x, x_test, N = np.asarray(x, np.float64), np.asarray(x_test, np.float64), len(x)
    if N < 128:
        fold = np.empty(N, int)
        fold[np.argsort(y, kind="stable")] = np.arange(N) % 6
        masks = [fold != number for number in range(6)]
    else:
        masks = [np.arange(N) < N - min(N // 5, 100)]
    # One with a single class has no AUC.
    masks = [inside for inside in masks if len(set(y[~inside])) == len(set(y[inside])) == 2]
    score = np.zeros(len(INVERSE_STRENGTHS))
    for inside in masks:
        for i, inverse in enumerate(INVERSE_STRENGTHS):
            theta = fit(x[inside], y[inside], 1 / (inverse * inside.sum()))
            score[i] += auc(logits(theta, x[~inside]), y[~inside])
    return logits(fit(x, y, 1 / (INVERSE_STRENGTHS[score.argmax()] * N)), x_test)


def auc(scores, y) -> float | None:
    """The area under the ROC curve of scores [N] for labels y [N]; ties count half, None if there is one class."""
    y = np.asarray(y, bool)
    if y.all() or not y.any():
        return None
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    positive, negative = y.sum(), (~y).sum()
    return float((rank[y].sum() - positive * (positive + 1) / 2) / (positive * negative))


def f1(predicted, y) -> float:
    """The F1 of predictions [N] of the class y [N]; 0 if neither has any."""
    predicted, y = np.asarray(predicted, bool), np.asarray(y, bool)
    return float(2 * (predicted & y).sum() / max(predicted.sum() + y.sum(), 1))


def weighted_f1(predicted, y) -> float:
    """The mean of both classes' F1, weighted by how many examples each has."""
    predicted, y = np.asarray(predicted, bool), np.asarray(y, bool)
    return float(y.mean() * f1(predicted, y) + (~y).mean() * f1(~predicted, ~y))


def losses(logits, y):
    """-log p(y) of labels y [N] with p(y = 1) = sigmoid(logits [N]), nats."""
    return np.logaddexp(0, (1 - 2 * np.asarray(y, np.float64)) * logits)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))
