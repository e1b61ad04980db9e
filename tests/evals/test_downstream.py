"""Cross entropy, KL and substitution: the specification's numbers, scipy, and the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxsae.evals import downstream
from jaxsae.lm import divergence
from tests.lm import tiny

log_softmax = jax.nn.log_softmax
HOOKS = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.1.mlp.hook_post"]


def example():
    """The specification's logits [2, 3, 5], original and new, and tokens [2, 3]."""
    b, t, v = np.meshgrid(np.arange(2), np.arange(3), np.arange(5), indexing="ij")
    tokens = np.array([[0, 1, 2], [3, 4, 0]])
    return np.sin(b + 2 * t + 3 * v), 1.5 * np.cos(2 * b + t + 0.5 * v), tokens


def random_logits(seed=0):
    random = np.random.default_rng(seed)
    # From nearly uniform rows to rows that are sure of one token.
    return random.normal(size=(4, 7, 13)) * 10 ** random.uniform(-2, 2, (4, 7, 1))


def test_cross_entropy_equals_the_golden_numbers(x64):
    original, new, tokens = example()
    ce = [downstream.cross_entropy(log_softmax(x), tokens)[:, :-1].mean() for x in (original, new)]
    np.testing.assert_allclose(ce, [1.4424663980634789, 1.8521119429643407], rtol=1e-13)
    np.testing.assert_allclose(ce[1] - ce[0], 0.4096455449008618, rtol=1e-13)


def test_kl_equals_the_golden_numbers(x64):
    original, new, _ = example()
    np.testing.assert_allclose(divergence.kl(original, new).mean(), 0.3587856857016736, rtol=1e-13)
    np.testing.assert_allclose(divergence.kl(new, original).mean(), 0.36226183816880236, rtol=1e-13)
    np.testing.assert_allclose(downstream.kl(log_softmax(original), log_softmax(new)).mean(), 0.3587856857016736)
    # PyTorch's "batchmean" of [b, T, V], in which fine-tuning on KL was published.
    np.testing.assert_allclose(divergence.kl(original, new).sum() / 2, 1.0763570571050205, rtol=1e-13)


def test_other_comparisons_of_predictions(x64):
    original, new, _ = example()
    np.testing.assert_allclose(
        downstream.total_variation(log_softmax(original), log_softmax(new)).mean(), 0.3363299562080699, rtol=1e-13
    )
    a, b = random_logits(0), random_logits(1)
    p, q = scipy.special.softmax(a, -1), scipy.special.softmax(b, -1)
    # The most that the probabilities of one event differ by.
    events = np.where(p > q, p - q, 0).sum(-1)
    log_p, log_q = log_softmax(a), log_softmax(b)
    np.testing.assert_allclose(downstream.total_variation(log_p, log_q), events, atol=1e-12)
    same = downstream.top1_consistency(log_p, log_q)
    np.testing.assert_array_equal(same, np.argmax(p, -1) == np.argmax(q, -1))
    assert 0 < same.sum() < same.size and same.dtype == a.dtype


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-4)])
def test_losses_equal_scipy(x64, dtype, tolerance):
    a, b = (random_logits(seed).astype(dtype) for seed in (0, 1))
    tokens = np.random.default_rng(2).integers(13, size=(4, 7))
    log_p = scipy.special.log_softmax(a.astype(np.float64), -1)
    want = -log_p[np.arange(4)[:, None], np.arange(6), tokens[:, 1:]]
    have = downstream.cross_entropy(log_softmax(a), tokens)
    assert have.dtype == dtype and (have[:, -1] == 0).all()
    np.testing.assert_allclose(have[:, :-1], want, rtol=tolerance, atol=tolerance)
    p, q = (scipy.special.softmax(x.astype(np.float64), -1) for x in (a, b))
    want, have = scipy.stats.entropy(p, q, axis=-1), downstream.kl(log_softmax(a), log_softmax(b))
    np.testing.assert_allclose(have, divergence.kl(jnp.asarray(a), jnp.asarray(b)), rtol=tolerance, atol=tolerance)
    # scipy's probabilities underflow to zero where b is sure; log-softmax does not.
    finite = np.isfinite(want)
    assert finite.any() and np.isfinite(have).all() and (have >= 0).all()
    np.testing.assert_allclose(have[finite], want[finite], rtol=tolerance, atol=tolerance)


def test_losses_ignore_a_constant_added_to_the_logits(x64):
    a, b = random_logits(0), random_logits(1)
    tokens = np.zeros((4, 7), int)
    shifted = downstream.cross_entropy(log_softmax(a + 1000), tokens)
    np.testing.assert_allclose(shifted, downstream.cross_entropy(log_softmax(a), tokens), atol=1e-11)
    np.testing.assert_allclose(divergence.kl(a + 1000, b - 50), divergence.kl(a, b), atol=1e-11)
    assert (divergence.kl(a, a) == 0).all()


def losses(lm, tokens, hook, substitutes):
    """`downstream.losses` with substitutes {name: f(x)}."""

    @jax.jit
    def compute(lm, tokens):
        x = lm.prefix(tokens, hook)
        return downstream.losses(lm, tokens, hook, x, {name: f(x) for name, f in substitutes.items()})

    return compute(lm, tokens)


def summed(tree):
    return {name: np.float64(value.sum()) for name, value in tree.items()}


@pytest.mark.parametrize("hook", HOOKS)
def test_the_identity_loses_nothing(hook):
    lm, tokens = tiny.model(), tiny.random_tokens(3)
    shared, each = losses(lm, tokens, hook, {"same": lambda x: x, "zero": jnp.zeros_like})
    assert {a.shape for a in jax.tree.leaves((shared, each))} == {tokens.shape}
    want = downstream.cross_entropy(log_softmax(jax.jit(lambda lm: lm.run(tokens))(lm)), tokens)
    np.testing.assert_allclose(shared["ce_original"], want, atol=1e-5)
    predicted = tokens.size - len(tokens)
    same = downstream.metrics(summed(shared), summed(each["same"]), predicted, tokens.size)
    assert same["delta_ce"] == 0 and same["kl"] == 0 and same["ce_recovered"] == 1
    assert same["total_variation"] == 0 and same["top1_consistency"] == 1
    assert same["ce_original"] == same["ce_substituted"] > 0
    zero = downstream.metrics(summed(shared), summed(each["zero"]), predicted, tokens.size)
    assert zero["ce_recovered"] == 0 and zero["kl"] > 0
    np.testing.assert_allclose(zero["ce_substituted"], shared["ce_zero"].sum() / predicted, rtol=1e-6)


@pytest.mark.parametrize("hook", HOOKS)
def test_zero_ablation_is_shared_if_nothing_of_the_tokens_is_left(x64, hook):
    lm, tokens = tiny.model(dtype=jnp.float64), tiny.random_tokens(3)
    shared, _ = losses(lm, tokens, hook, {})
    x = lm.prefix(tokens[:1], hook)
    (first,) = downstream.log_probabilities(lm, tokens[:1], hook, [jnp.zeros_like(x)])
    same = np.allclose(downstream.cross_entropy(jnp.repeat(first, 3, 0), tokens), shared["ce_zero"], atol=1e-12)
    assert same == downstream.zero_is_shared(lm, hook)


def test_a_substitute_at_one_position_leaves_the_losses_before_it(x64):
    position, tokens = 5, tiny.random_tokens(2)
    lm = tiny.model(dtype=jnp.float64)
    shared, each = losses(lm, tokens, "blocks.1.hook_resid_mid", {"new": lambda x: x.at[:, position].set(0)})
    kl, changed = each["new"]["kl"], each["new"]["ce_substituted"] != shared["ce_original"]
    # The passes share one product, whose rounding may differ by position in it.
    np.testing.assert_allclose(kl[:, :position], 0, atol=1e-12)
    assert (kl[:, position:] > 1e-9).all() and changed[:, position:-1].all()
    np.testing.assert_allclose(
        each["new"]["ce_substituted"][:, :position], shared["ce_original"][:, :position], atol=1e-12
    )


def test_metrics_are_means_and_a_ratio():
    shared = {"ce_original": 20.0, "ce_zero": 60.0, "kl_zero": 24.0}
    own = {"ce_substituted": 30.0, "kl": 8.0, "total_variation": 4.0, "top1_consistency": 12.0}
    have = downstream.metrics(shared, own, 10, 16)
    want = {"ce_original": 2, "ce_substituted": 3, "delta_ce": 1, "kl": 0.5, "ce_recovered": 0.75}
    want |= {"total_variation": 0.25, "top1_consistency": 0.75, "ce_zero": 6, "kl_zero": 1.5}
    assert have == want
    assert downstream.metrics(shared, own, 0, 16)["kl"] is None
