"""The standard metrics compared with a plain loop over tokens, on one device and on a mesh."""

from dataclasses import replace
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
OF_LM += ("ce_zero", "kl_zero")
OF_LM += ("delta_ce_se", "kl_se", "ce_recovered_se", "total_variation_se", "top1_consistency_se")
# Rows whose mean explained_variance_per_token takes for the mean of all.
FIRST_ROWS = 2048


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


def standard_error(sums, counts):
    """Of a mean over tokens, from the sums of contexts and how many tokens they are of."""
    residual = sums - sums.sum() / counts.sum() * counts
    return np.sqrt(len(sums)) * residual.std(ddof=1) / counts.sum()


def or_none(sums, counts):
    return [s / c if c else None for s, c in zip(sums, counts)]


def reconstruction_by_loop(sae, x, skip, kept=None):
    """The metrics of the tokens of x [b, T, d] in `kept` [b, T] (None: all) without the first `skip` positions."""
    kept = np.ones(x.shape[:2], bool) if kept is None else kept.copy()
    kept[:, :skip] = False
    normal, mean, scale = normalised(x)
    z = np.asarray(dense.code(sae, normal.reshape(-1, x.shape[-1])))
    xhat = np.asarray(dense.reconstruct(sae, z)).reshape(x.shape)
    of_kept = lambda a: np.where(kept, (a**2).sum(-1), 0)
    error, spread = of_kept(normal - xhat), of_kept(normal - normal[kept].mean(0))
    active = np.where(kept, (z > 0).sum(1).reshape(kept.shape), 0)
    nmse = error.sum() / spread.sum()
    error_se = lambda error, spread, ratio: np.sqrt(len(x)) * (error - ratio * spread).sum(1).std(ddof=1) / spread.sum()
    out = xhat * scale + mean
    first = max(1, FIRST_ROWS // x.shape[1])
    raw_error, raw_spread = of_kept(x - out), of_kept(x - x[kept].mean(0))
    from_first = ((x - x[:first][kept[:first]].mean(0)) ** 2).sum(-1)[kept]
    fvu = raw_error.sum() / raw_spread.sum()
    norms, out_norms = (np.linalg.norm(a, axis=-1) for a in (x, out))
    each = {"l0": active, "cosine": np.where(kept, (x * out).sum(-1) / norms / out_norms, 0)}
    each["l2_ratio"] = np.where(kept, out_norms / norms, 0)
    values = {
        "loss": MSE_SCALE * error.sum() / kept.sum() / x.shape[-1],
        "nmse": nmse,
        "nmse_se": error_se(error, spread, nmse),
        "fvu": fvu,
        "fvu_se": error_se(raw_error, raw_spread, fvu),
        "explained_variance": 1 - fvu,
        "explained_variance_per_token": (1 - raw_error[kept] / from_first).mean(),
        "relative_reconstruction_bias": (out[kept] ** 2).sum() / (x * out)[kept].sum(),
    }
    for name, a in each.items():
        values |= {name: a.sum() / kept.sum(), f"{name}_se": standard_error(a.sum(1), kept.sum(1))}
    if skip:
        return values
    return values | {
        "nmse_by_position": or_none(error.sum(0), np.where(kept.any(0), spread.sum(0), 0)),
        "l0_by_position": or_none(active.sum(0), kept.sum(0)),
        **distributions_by_loop(z[kept.ravel()], np.asarray(sae.W_dec), active[kept], x.shape[-1]),
    }


def distributions_by_loop(z, W, l0, d):
    """Of the codes z [tokens, n] of the tokens that count, and the L0 of these."""
    density = (z > 0).mean(0)
    alive = density > 0
    importance = np.log10((z**2).mean(0)[alive] * (W**2).sum(1)[alive])
    edges = {"density": np.linspace(-8, 0, 33), "importance": np.linspace(importance.min(), importance.max(), 33)}
    values = {"density": np.log10(density[alive]), "importance": importance}
    out = {"eval_dead_fraction": (density == 0).mean(), "densest_d": np.sort(density)[::-1][:d].mean()}
    for percent in (1, 10):
        over = [share for share in density if share > percent / 100]
        out[f"freq_over_{percent}_percent"] = len(over) / len(density)
        out[f"normalized_freq_over_{percent}_percent"] = sum(over) / density.sum()
    for name in edges:
        counts = np.histogram(values[name], edges[name])[0]
        if name == "importance":
            # Rounding may move the smallest and the largest out of the range of another computation of them.
            counts = np.histogram(np.clip(values[name], edges[name][0], edges[name][-1]), edges[name])[0]
        out |= {f"{name}_histogram": counts.tolist(), f"{name}_histogram_edges": edges[name].tolist()}
    for q in (5, 25, 50, 75, 95):
        out[f"l0_q{q:02}"] = sorted(l0)[max(int(np.ceil(q / 100 * len(l0))) - 1, 0)]
    counts = [int((l0 == value).sum()) for value in range(int(l0.max()) + 1)]
    return out | {"l0_histogram": counts, "l0_histogram_edges": list(range(len(counts) + 1))}


def downstream_by_loop(lm, sae, tokens, hook, x, skip, kept=None, real=None):
    """The metrics that need a language model, token by token, from position `skip` on.

    The autoencoder is put in at the tokens in `kept`; those in `real` count (None: all).
    """
    everywhere = np.ones(tokens.shape, bool)
    kept, real = (everywhere if mask is None else mask for mask in (kept, real))
    normal, mean, scale = normalised(x)
    z = dense.code(sae, normal.reshape(-1, x.shape[-1]))
    xhat = np.asarray(dense.reconstruct(sae, z)).reshape(x.shape) * scale + mean
    put_in = lambda new: np.where(kept[..., None], new, x)
    log_p = {
        name: scipy.special.log_softmax(logits_with(lm, tokens, hook, new), -1)
        for name, new in {"original": x, "substituted": put_in(xhat), "zero": put_in(0 * x)}.items()
    }
    ce, kl = {name: np.zeros(tokens.shape) for name in log_p}, np.zeros(tokens.shape)
    predicted, counts = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    for c in range(len(tokens)):
        for t in range(skip, tokens.shape[1]):
            if not real[c, t]:
                continue
            p, q = log_p["original"][c, t], log_p["substituted"][c, t]
            kl[c, t], counts[c, t] = (np.exp(p) * (p - q)).sum(), True
            if t + 1 < tokens.shape[1] and real[c, t + 1]:
                predicted[c, t] = True
                for name in ce:
                    ce[name][c, t] = -log_p[name][c, t, tokens[c, t + 1]]
    original, substituted, zero = (ce[name].sum() / predicted.sum() for name in ("original", "substituted", "zero"))
    recovered, delta = (zero - substituted) / (zero - original), ce["substituted"] - ce["original"]
    p, q = (np.exp(log_p[name])[counts] for name in ("original", "substituted"))
    variation, same = np.abs(p - q).sum(-1).mean() / 2, (p.argmax(-1) == q.argmax(-1)).mean()
    each = lambda of_log_p: np.where(counts, of_log_p, 0)
    both = log_p["original"], log_p["substituted"]
    variations = each(np.abs(np.exp(both[0]) - np.exp(both[1])).sum(-1) / 2)
    consistent = each(both[0].argmax(-1) == both[1].argmax(-1))
    of_counts = [standard_error(a.sum(1), counts.sum(1)) for a in (kl, variations, consistent)]
    gained = (ce["zero"] - ce["original"]).sum(1)
    left = (ce["zero"] - ce["substituted"]).sum(1) - recovered * gained
    recovered_se = np.sqrt(len(left)) * left.std(ddof=1) / gained.sum()
    errors = standard_error(delta.sum(1), predicted.sum(1)), of_counts[0], recovered_se, *of_counts[1:]
    mean_kl = kl.sum() / counts.sum()
    p, q = (log_p[name][counts] for name in ("original", "zero"))
    kl_zero = (np.exp(p) * (p - q)).sum(-1).mean()
    values = original, substituted, substituted - original, mean_kl, recovered, variation, same, zero, kl_zero, *errors
    out = dict(zip(OF_LM, values, strict=True))
    if skip:
        return out
    out["kl_by_position"] = or_none(kl.sum(0), counts.sum(0))
    return out | {"delta_ce_by_position": or_none(delta.sum(0), predicted.sum(0))}


def assert_equal(have, want, **tolerance):
    for name, value in want.items():
        if value is None:
            assert have[name] is None, name
        elif isinstance(value, list):
            assert [v is None for v in have[name]] == [v is None for v in value], name
            numbers = ([v for v in values if v is not None] for values in (have[name], value))
            np.testing.assert_allclose(*numbers, err_msg=name, **tolerance)
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


LENGTHS = np.array([8, 3, 1, 8, 5, 8, 2])


@pytest.mark.parametrize("hook, first, skip", [("blocks.0.hook_resid_post", 1, 7), ("blocks.0.mlp.hook_post", 0, 7)])
def test_padding_and_what_training_left_out_count_in_no_reconstruction_and_stay_as_they_are(x64, hook, first, skip):
    """Contexts of other lengths, the first position and a token: the plain loop puts nothing in there.

    In the loop another token fills up the contexts, so that nothing depends on which it is.
    """
    lm, real = two_layers(), np.arange(POSITIONS) < LENGTHS[:, None]
    tokens = tiny.random_tokens(7, POSITIONS)
    tokens[::2, 2] = skip
    filled, kept = np.where(real, tokens, 50), real & (tokens != skip) & (np.arange(POSITIONS) >= first)
    x = np.asarray(jax.jit(lambda lm: lm.prefix(filled, hook))(lm))
    sae, want = random_sae(x.shape[-1]), {}
    for view, start in (("", 0), ("no_pos0_", 1)):
        values = reconstruction_by_loop(sae, x, start, kept)
        values |= downstream_by_loop(lm, sae, filled, hook, x, start, kept, real)
        want |= {f"{view}{name}": value for name, value in values.items()}
    for mesh in MESHES:
        subject = on_text(mesh, sae, hook, 7, lm)
        source = subject.source
        source.tokens, source.first, source.skip = np.where(real, tokens, -1), first, skip
        assert subject.rows == kept.sum() and subject.contexts == 7
        have = measure("standard", subject)
        assert have.keys() == want.keys()
        assert_equal(have, want, rtol=1e-9)
        if first:
            assert have["nmse_by_position"][0] is None and have["kl_by_position"][0] == 0


def test_skip_first_leaves_position_0_to_the_language_model(x64):
    subject = on_text((1, 1), random_sae(tiny.WIDTH), "blocks.0.hook_resid_post", 7, two_layers())
    everywhere = measure("standard", subject)
    subject.source.first = 1
    have = measure("standard", replace(subject))  # what was counted before is forgotten
    assert have["kl_by_position"][0] == 0 < everywhere["kl_by_position"][0]
    assert have["l0_by_position"][0] is None
    np.testing.assert_allclose(have["nmse"], everywhere["no_pos0_nmse"], rtol=1e-12)


def test_rows_of_nan_count_in_no_metric(x64):
    x, sae = np.random.default_rng(0).normal(size=(6, 5, 12)) + 1, random_sae(12)
    kept = np.random.default_rng(1).random((6, 5)) < 0.7
    want = reconstruction_by_loop(sae, x, 0, kept)
    for mesh in MESHES:
        assert_equal(measure("standard", on_files(mesh, sae, np.where(kept[..., None], x, np.nan))), want, rtol=1e-9)


def test_several_batches_are_one_mean(x64):
    """Two batches, of 4096 tokens and the rest; standard errors are measured from the first one's mean."""
    hook, sae, lm = "blocks.0.hook_resid_post", random_sae(tiny.WIDTH), two_layers()
    subject = on_text((1, 1), sae, hook, 700, lm)
    tokens = subject.source.tokens
    x = np.asarray(jax.jit(lambda lm: lm.prefix(tokens, hook))(lm))
    assert len(list(subject.batches())) == 2
    have = measure("standard", subject)
    want = reconstruction_by_loop(sae, x, 0)
    for name in ("nmse_se", "fvu_se"):
        np.testing.assert_allclose(have[name], want.pop(name), rtol=1e-2)
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
    want = reconstruction_by_loop(sae, x, 0) | dict.fromkeys((*OF_LM, "kl_by_position", "delta_ce_by_position"))
    assert have.keys() == want.keys()
    assert_equal(have, want, rtol=1e-9)
    constant = sae.replace(W_dec=jnp.zeros_like(sae.W_dec), b_dec=jnp.asarray(normalised(x)[0].mean((0, 1))))
    np.testing.assert_allclose(measure("standard", on_files(mesh, constant, x))["nmse"], 1, rtol=1e-12)


def test_one_context_has_no_standard_error(x64):
    have = measure("standard", on_files((1, 1), random_sae(12), np.random.default_rng(0).normal(size=(1, 5, 12))))
    assert have["nmse_se"] is None and have["nmse"] > 0
