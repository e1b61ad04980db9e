"""The sparsity of effects against NumPy, and the evaluation against a brute-force ablation."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.evals import EvaluationConfigs, ablation, measure
from tests.evals.subjects import MESHES, on_files, on_text, random_sae, two_layers
from tests.lm import tiny

CONTEXTS, POSITIONS = 5, 3


def reference(u):
    u = u - np.median(u, axis=-1, keepdims=True)
    return (np.abs(u).sum((-2, -1)) ** 2 / (u * u).sum((-2, -1))) / (u.shape[-2] * u.shape[-1])


@pytest.mark.parametrize("V", [1001, 1000, 2, 3])
def test_the_sparsity_of_effects_equals_numpy(V):
    u = np.random.default_rng(V).normal(size=(2, 3, 4, V)).astype("f") * 10 + 3
    u[0, 0, :, : V // 2] = u[0, 0, :, :1]  # many equal numbers
    np.testing.assert_allclose(ablation.effect_sparsity(u), reference(u.astype(float)), rtol=1e-5)
    medians = np.median(u.astype(float), -1)
    np.testing.assert_allclose(ablation._median(jnp.asarray(u)), medians, rtol=1e-6, atol=1e-5)


def test_gaussian_effects_are_two_over_pi_and_one_moved_output_is_one_of_all():
    T, V = 16, 5000
    gaussian = np.random.default_rng(0).normal(size=(T, V)).astype("f")
    assert ablation.effect_sparsity(gaussian) == pytest.approx(2 / np.pi, rel=1e-2)
    for sign in (-1, 1):
        one_hot = np.zeros((T, V), "f")
        one_hot[3, 7] = sign * 0.3
        assert ablation.effect_sparsity(one_hot) == pytest.approx(1 / (V * T), rel=1e-6)


def test_a_shift_of_all_logits_is_no_effect():
    u = np.random.default_rng(0).normal(size=(4, 50)).astype("f")
    shifted = ablation.effect_sparsity(u + np.arange(4, dtype="f")[:, None])
    np.testing.assert_allclose(shifted, ablation.effect_sparsity(u), rtol=1e-5)
    assert ablation.effect_sparsity(np.ones((4, 50), "f")) == 0


def brute_force(subject, config):
    """Every ablation by itself: {kind: [tokens, A] of S}, in plain NumPy around the language model."""
    lm, sae, T = subject.lm, subject.sae, config.positions
    random = np.random.default_rng(config.seed)
    effects = {kind: [] for kind in ablation.KINDS}
    for tokens in subject.source.tokens:
        directions = random.normal(size=(config.others, tiny.WIDTH))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        channels, scores = random.permutation(tiny.WIDTH)[: config.others], random.random(len(tokens))
        scores = np.where(np.asarray(subject.source.kept(tokens[None]))[0], scores, -1)
        real = tokens >= 0
        allowed = [t for t in range(1, len(tokens) - T + 1) if scores[t] >= 0 and real[t : t + T].all()]
        if not allowed:
            continue
        t = max(allowed, key=lambda t: scores[t])
        x = np.asarray(lm.run_prefix(tokens))
        if config.base == "reconstruction":
            xhat = np.asarray(jaxsae.decode(sae, jaxsae.encode(sae, jnp.asarray(x))))
            base = np.where(np.asarray(subject.source.kept(tokens[None]))[0][:, None], xhat, x)
        else:
            base = x
        code = jaxsae.encode(sae, jnp.asarray(x[t]))
        logits = partial(lm.logits, tokens, slice(t, t + T))
        before, W = logits(base), np.asarray(sae.as_used().W_dec)
        rows = [float(code.scale) * v * W[i] for v, i in zip(np.asarray(code.values), np.asarray(code.indices)) if v]
        gone = {"latents": rows, "channels": [base[t] * (np.arange(tiny.WIDTH) == c) for c in channels]}
        gone["directions"] = [(base[t] @ r) * r for r in directions]
        for kind, rows in gone.items():
            ablated = [np.where((np.arange(len(x)) == t)[:, None], base - row, base) for row in rows]
            u = np.stack([logits(stream) for stream in ablated]) - before
            effects[kind].append(np.stack([reference(u), reference(u[:, :1])], 1))
    return effects


class Brute:
    """The language model of one context."""

    def __init__(self, lm, hook):
        self.lm, self.hook = lm, hook
        self.run_prefix = lambda tokens: lm.prefix(np.maximum(tokens, 0)[None], hook)[0]
        self.forward = jax.jit(lambda tokens, stream: lm.run(tokens, {hook: lambda _: stream}))

    def logits(self, tokens, at, stream):
        return np.asarray(self.forward(np.maximum(tokens, 0)[None], jnp.asarray(stream)[None])[0, at])


@pytest.mark.parametrize(
    "hook, base, shape",
    [
        pytest.param("blocks.0.hook_resid_post", "activation", (1, 1), marks=pytest.mark.slow),
        ("blocks.0.hook_resid_post", "activation", (2, 4)),
        ("blocks.0.hook_attn_out", "reconstruction", (2, 4)),
    ],
    ids=str,
)
def test_the_evaluation_equals_a_brute_force_ablation(x64, hook, base, shape, tmp_path):
    """With padding, a context that is too short, and position 0 left out of training."""
    config = ablation.Config(CONTEXTS, POSITIONS, 3, base)
    subject = on_text(shape, random_sae(tiny.WIDTH), hook, CONTEXTS + 2)
    tokens = subject.source.tokens
    tokens[1, 5:], tokens[2, 2:] = -1, -1
    subject.source.first = 1
    result = measure("ablation", subject, EvaluationConfigs(ablation=config))
    plain = on_text((1, 1), random_sae(tiny.WIDTH), hook, CONTEXTS)
    plain.source.tokens[:], plain.source.first = tokens[:CONTEXTS], 1
    lm = two_layers()
    effects = brute_force(_with(plain, lm, hook), config)
    assert result["tokens"] == CONTEXTS - 1
    for kind in ablation.KINDS:
        values = np.concatenate(effects[kind])
        sums = np.array([part[:, 0].sum() for part in effects[kind]])
        counts = np.array([len(part) for part in effects[kind]])
        error = np.sqrt(len(sums)) * (sums - values[:, 0].mean() * counts).std(ddof=1) / counts.sum()
        want = {"sparsity": values[:, 0].mean(), "sparsity_at_token": values[:, 1].mean(), "sparsity_se": error}
        assert {name: result[kind][name] for name in want} == pytest.approx(want, rel=1e-7), kind
        assert result[kind]["ablations"] == len(values)
    assert result["one_hot"] == pytest.approx(1 / (POSITIONS * 101)) and result["gaussian"] == 2 / np.pi
    ablation.figure(result, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def _with(subject, lm, hook):
    """The subject, its autoencoder on one device, its language model that of one context."""
    return SimpleNamespace(lm=Brute(lm, hook), sae=random_sae(tiny.WIDTH), source=subject.source)


def test_what_cannot_be_ablated_is_refused():
    sae, lm = random_sae(tiny.WIDTH, dtype=jnp.float32), two_layers(jnp.float32)
    subject = on_text(MESHES[0], sae, "blocks.0.hook_resid_post", 2, lm)
    with pytest.raises(jaxsae.BadInput, match=r"--ablation.positions is 16, and contexts have 8 tokens: give a longer"):
        measure("ablation", subject)
    with pytest.raises(jaxsae.BadInput, match=r"--ablation.others is 0: give at least 1"):
        ablation.Config(others=0)
    files = on_files((1, 1), random_sae(12, dtype=jnp.float32), np.ones((2, 5, 12), "f"))
    with pytest.raises(jaxsae.BadInput, match=r"--metrics ablation needs a language model"):
        measure("ablation", files)
