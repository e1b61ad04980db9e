"""KL between a model's own predictions, chunk by chunk, against the plain form."""

import jax
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.lm import divergence
from jaxsae.lm.divergence import kl, kl_of_streams
from jaxsae.lm.model import unembed


def problem(lm, tokens=70):
    a, b = jax.random.split(jax.random.key(0))
    original = jax.random.normal(a, (tokens, lm.config.d_model))
    return original, original + 0.3 * jax.random.normal(b, original.shape)


@pytest.mark.parametrize("chunk, cached", [(1, 1), (16, 1), (16, 3000), (70, 3000), (512, divergence.CACHED)])
def test_chunks_do_not_show(tiny_lm, chunk, cached, monkeypatch):
    monkeypatch.setattr(divergence, "CACHED", cached)
    lm = lms.load(str(tiny_lm))
    original, substituted = problem(lm)
    plain = lambda x: kl(unembed(lm, original), unembed(lm, x))
    ours = lambda x: kl_of_streams(lm, original, x, chunk)
    np.testing.assert_allclose(ours(substituted), plain(substituted), rtol=1e-5)
    with_values = lambda f: jax.value_and_grad(lambda x: (f(x).mean(), f(x)), has_aux=True)
    (_, values), have = with_values(ours)(substituted)
    (_, want_values), want = with_values(plain)(substituted)
    np.testing.assert_allclose(values, want_values, rtol=1e-5)
    np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_the_other_direction(tiny_lm):
    lm = lms.load(str(tiny_lm))
    original, substituted = problem(lm)
    plain = lambda x: kl(unembed(lm, x), unembed(lm, original)).sum()
    ours = lambda x: kl_of_streams(lm, original, x, 16, True).sum()
    (value, slope), (want, want_slope) = (jax.value_and_grad(f)(substituted) for f in (ours, plain))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-4, atol=1e-5 * np.abs(want_slope).max())


def test_only_what_was_put_in_gets_gradient(tiny_lm):
    lm = lms.load(str(tiny_lm))
    original, substituted = problem(lm)
    of_lm, of_original = jax.grad(lambda lm, a: kl_of_streams(lm, a, substituted, 512).sum(), (0, 1))(lm, original)
    assert all((g == 0).all() for g in jax.tree.leaves((of_lm, of_original)))


def test_logits_of_all_tokens_never_exist(tiny_lm):
    lm = lms.load(str(tiny_lm))
    original, substituted = problem(lm, tokens=4096)
    vocabulary = lm.config.vocab_size

    def compiled(f):
        gradient = jax.grad(lambda x, lm, a: f(lm, a, x).mean())
        return jax.jit(gradient).lower(substituted, lm, original).compile()

    chunked = compiled(lambda lm, a, x: kl_of_streams(lm, a, x, 64))
    plain = compiled(lambda lm, a, x: kl(unembed(lm, a), unembed(lm, x)))
    assert f"[4096,{vocabulary}]" in plain.as_text()
    assert f"[4096,{vocabulary}]" not in chunked.as_text()
    # (Of the plain form XLA:CPU says nothing: its one fusion allocates for itself.)
    assert chunked.memory_analysis().temp_size_in_bytes < 4 * 4096 * vocabulary / 4
