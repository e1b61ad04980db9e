"""The standard metrics compared with a plain loop over tokens, on one device and on a mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxsae.evals import measure
from jaxsae.sae.types import SAE, Spec
from tests.evals.subjects import MESHES, MSE_SCALE, POSITIONS, Text, on_files, on_text, random_sae, two_layers
from tests.lm import tiny
from tests.sae import dense

OF_LM = ("ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered", "total_variation", "top1_consistency")
OF_LM += ("delta_ce_se", "kl_se")


@partial(jax.jit, static_argnames="hook")
def logits_with(lm, tokens, hook, new):
    return lm.run(tokens, {hook: lambda _: new})


def exact_sae(d):
    """A TopK autoencoder that returns its input: a latent for each sign of each coordinate."""
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)])
    zero = jnp.zeros(d)
    return SAE(both, jnp.zeros(2 * d), both, zero, Spec("topk", 2 * d, "unit_norm", "free", True))


def normalised(x):
    """The specification's unit norm, in NumPy: rows, means and scales."""
    mean = x.mean(-1, keepdims=True)
    scale = np.linalg.norm(x - mean, axis=-1, keepdims=True)
    return (x - mean) / scale, mean, scale


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


def reconstruction_by_loop(sae, x, skip):
    """The metrics of x [b, T, d] without its first `skip` positions."""
    x = x[:, skip:]
    normal, mean, scale = normalised(x)
    z = np.asarray(dense.code(sae, normal.reshape(-1, x.shape[-1])))
    xhat = np.asarray(dense.reconstruct(sae, z)).reshape(x.shape)
    error, spread = (normal - xhat) ** 2, (normal - normal.mean((0, 1))) ** 2
    nmse = error.sum() / spread.sum()
    of_contexts = error.sum((1, 2)) - nmse * spread.sum((1, 2))
    values = {
        "loss": MSE_SCALE * error.mean(),
        "nmse": nmse,
        "l0": (z > 0).sum(1).mean(),
        "fvu": ((x - xhat * scale - mean) ** 2).sum() / ((x - x.mean((0, 1))) ** 2).sum(),
        "nmse_se": len(x) * standard_error(of_contexts) / spread.sum(),
    }
    return values if skip else values | {"nmse_by_position": error.sum((0, 2)) / spread.sum((0, 2))}


def downstream_by_loop(lm, sae, tokens, hook, x, skip):
    """The metrics that need a language model, token by token, from position `skip` on."""
    normal, mean, scale = normalised(x)
    z = dense.code(sae, normal.reshape(-1, x.shape[-1]))
    xhat = np.asarray(dense.reconstruct(sae, z)).reshape(x.shape) * scale + mean
    log_p = {
        name: scipy.special.log_softmax(logits_with(lm, tokens, hook, new), -1)
        for name, new in {"original": x, "substituted": xhat, "zero": 0 * x}.items()
    }
    ce, kl = {name: [[] for _ in tokens] for name in log_p}, [[] for _ in tokens]
    for c in range(len(tokens)):
        for t in range(skip, POSITIONS):
            p, q = log_p["original"][c, t], log_p["substituted"][c, t]
            kl[c].append((np.exp(p) * (p - q)).sum())
            if t + 1 < POSITIONS:
                for name in ce:
                    ce[name][c].append(-log_p[name][c, t, tokens[c, t + 1]])
    ce = {name: np.array(values) for name, values in ce.items()}
    original, substituted, zero = (ce[name].mean() for name in ("original", "substituted", "zero"))
    recovered = (zero - substituted) / (zero - original)
    p, q = (np.exp(log_p[name][:, skip:]) for name in ("original", "substituted"))
    variation, same = np.abs(p - q).sum(-1).mean() / 2, (p.argmax(-1) == q.argmax(-1)).mean()
    errors = standard_error((ce["substituted"] - ce["original"]).mean(1)), standard_error(np.array(kl).mean(1))
    values = original, substituted, substituted - original, np.mean(kl), recovered, variation, same, *errors
    return dict(zip(OF_LM, values, strict=True))


def assert_equal(have, want, **tolerance):
    for name, value in want.items():
        if value is None:
            assert have[name] is None, name
        else:
            np.testing.assert_allclose(have[name], value, err_msg=name, **tolerance)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.0.mlp.hook_post"])
def test_metrics_equal_a_loop_on_every_mesh(x64, hook):
    """Seven contexts, which divide over no mesh of more than one device."""
    lm = two_layers()
    source = Text(lm, hook, 7)
    saes, tokens = [random_sae(source.width, seed=seed) for seed in (0, 1)], source.tokens
    x = np.asarray(jax.jit(lambda lm: lm.prefix(tokens, hook))(lm))
    want = {}
    for which, sae in zip(("", "raw_"), saes):
        for view, skip in (("", 0), ("no_pos0_", 1)):
            values = reconstruction_by_loop(sae, x, skip) | downstream_by_loop(lm, sae, tokens, hook, x, skip)
            want |= {f"{which}{view}{name}": value for name, value in values.items()}
    for mesh in MESHES:
        have = measure("standard", on_text(mesh, saes[0], hook, 7, lm, saes[1]))
        assert have.keys() == want.keys()
        assert_equal(have, want, rtol=1e-9)


def test_several_batches_are_one_mean(x64):
    """Two batches, of 4096 tokens and the rest; standard errors are measured from the first one's mean."""
    hook, sae, lm = "blocks.0.hook_resid_post", random_sae(tiny.WIDTH), two_layers()
    subject = on_text((1, 1), sae, hook, 700, lm)
    tokens = subject.source.tokens
    x = np.asarray(jax.jit(lambda lm: lm.prefix(tokens, hook))(lm))
    assert len(list(subject.batches())) == 2
    have = measure("standard", subject)
    want = reconstruction_by_loop(sae, x, 0)
    np.testing.assert_allclose(have["nmse_se"], want.pop("nmse_se"), rtol=1e-2)
    assert_equal(have, want | downstream_by_loop(lm, sae, tokens, hook, x, 0), rtol=1e-9)


@pytest.mark.parametrize(
    "mesh, hook", list(zip(MESHES, ["blocks.0.hook_resid_mid", "blocks.1.hook_attn_out"])), ids=str
)
def test_an_exact_autoencoder_loses_nothing(x64, mesh, hook):
    have = measure("standard", on_text(mesh, exact_sae(tiny.WIDTH), hook))
    for view in ("", "no_pos0_"):
        for name in ("loss", "nmse", "fvu", "delta_ce", "kl", "nmse_se", "delta_ce_se", "kl_se"):
            assert abs(have[f"{view}{name}"]) < 1e-12, name
        np.testing.assert_allclose(have[f"{view}ce_recovered"], 1, atol=1e-12)
        # Of a coordinate's two signs one is positive.
        assert have[f"{view}l0"] == tiny.WIDTH
    assert max(have["nmse_by_position"]) < 1e-12


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_activations_without_a_language_model(x64, mesh):
    x, sae = np.random.default_rng(0).normal(size=(6, 5, 12)) + 1, random_sae(12)
    have = measure("standard", on_files(mesh, sae, x))
    want = reconstruction_by_loop(sae, x, 0) | dict.fromkeys(OF_LM)
    assert have.keys() == want.keys()
    assert_equal(have, want, rtol=1e-9)
    constant = sae.replace(W_dec=jnp.zeros_like(sae.W_dec), b_dec=jnp.asarray(normalised(x)[0].mean((0, 1))))
    np.testing.assert_allclose(measure("standard", on_files(mesh, constant, x))["nmse"], 1, rtol=1e-12)


def test_one_context_has_no_standard_error(x64):
    have = measure("standard", on_files((1, 1), random_sae(12), np.random.default_rng(0).normal(size=(1, 5, 12))))
    assert have["nmse_se"] is None and have["nmse"] > 0
