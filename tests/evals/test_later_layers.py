"""Later layers: the end-to-end paper's code, its specification's numbers, NumPy, and the identity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae import lm as lms
from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals import EvaluationConfigs, measure
from jaxsae.evals import later_layers as layers
from jaxsae.evals.subject import reconstruct
from jaxsae.lm.hooks import KINDS
from jaxsae.sae.types import SAE, Spec
from tests.evals.subjects import on_text, two_layers
from tests.lm import tiny
from tests.marks import slow
from tests.sae import dense


def run(mesh, sae, hook, tokens, lm, batch=8):
    """{place: {metric: value}} of token ids [b, T]."""
    subject = on_text(mesh, sae, hook, *tokens.shape[:1], lm, positions=tokens.shape[1])
    subject.source.tokens = tokens
    return measure("later_layers", subject, EvaluationConfigs(later_layers=layers.Config(batch)))


BRAUN = Spec("relu", 1, "none", "normalised", False)
VIEWS = {"": slice(None), "pos0_": slice(0, 1), "no_pos0_": slice(1, None)}


def specification():
    """The specification's autoencoder and its input [2, 3, 4]."""
    i, j = np.meshgrid(np.arange(6), np.arange(4), indexing="ij")
    arrays = np.sin(1 + 4 * i + j), 0.1 * np.cos(np.arange(6)), np.cos(2 + 6 * j + i), 0.05 * (np.arange(4) + 1)
    b, t, k = np.meshgrid(np.arange(2), np.arange(3), np.arange(4), indexing="ij")
    return SAE(*map(jnp.asarray, arrays), BRAUN), jnp.asarray(np.sin(0.7 * (12 * b + 4 * t + k)) * (1 + 0.5 * k))


def test_explained_variance_equals_the_golden_numbers(x64):
    sae, x = specification()
    with jax.set_mesh(make_mesh(1, 1)):
        xhat = reconstruct(sae, x)
    np.testing.assert_allclose(xhat[0, 0], [-0.2977323263, -0.8466574564, -1.3201723963, -1.6765742459], rtol=1e-9)
    swapped = layers.explained_variance(x, xhat)
    np.testing.assert_allclose(swapped.mean(), -9.461343392668768, rtol=1e-12)
    np.testing.assert_allclose(swapped.std(ddof=1), 5.020246843038357, rtol=1e-12)
    have = layers.metrics(layers.statistics(xhat, x, at_autoencoder=True))
    want = {
        "mse": 4.128291932850345,
        "explained_variance": -1.4037980677283728,
        "explained_variance_paper": -1.351564970504514,
        "explained_variance_paper_ln": -2.2833727189263278,
        "explained_variance_swapped": -9.461343392668768,
        "explained_variance_swapped_ln": -3.95749116321606,
    }
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, rtol=1e-12, err_msg=name)


def peer(shared, case):
    return dict(np.load(shared(f"fixtures/peers/train/e2e_{case}") / "golden.npz"))


@pytest.mark.parametrize("case", ["local", "e2e", "e2e_downstream", "e2e_p_norm", "e2e_two_positions"])
def test_terms_equal_those_of_the_papers_code(x64, shared, case):
    g = peer(shared, case)
    pairs = {
        "out_to_in": lambda hook: (g[f"new/{hook}/input"], g[f"new/{hook}/output"]),
        "out_to_orig": lambda hook: (g[f"new/{hook}/output"], g[f"orig/{hook}"]),
        "in_to_orig": lambda hook: (g[f"new/{hook}/input"], g[f"orig/{hook}"]),
    }
    terms = [name.split("/")[1:] for name in g if name.startswith("term/") and name.count("/") == 2]
    terms = [(kind, hook) for kind, hook in terms if kind in pairs]
    assert terms
    for kind, hook in terms:
        pair = pairs[kind](hook)
        mse = layers.metrics(layers.statistics(*pair))["mse"]
        np.testing.assert_allclose(mse, g[f"term/{kind}/{hook}"], rtol=1e-12)
        for ln in ("", "_ln"):
            have = layers.explained_variance(*pair, layer_norm=bool(ln))
            for std, value in (("", have.mean()), ("_std", have.std(ddof=1))):
                want = g[f"term/{kind}/explained_variance{ln}{std}/{hook}"]
                np.testing.assert_allclose(value, want, rtol=1e-10, err_msg=f"{kind} {hook} {ln}{std}")


def test_measure_equals_the_papers_code(x64, shared):
    g, hook = peer(shared, "e2e_downstream"), "blocks.1.hook_resid_pre"
    lm = lms.load(str(shared("fixtures/peers/gpt2_tiny/hf")), dtype=jnp.float64)
    lm = lms.process_weights(lm)
    arrays = [jnp.asarray(g[f"param/blocks-1-hook_resid_pre.{n}"]) for n in ("encoder.0.weight", "encoder.0.bias")]
    arrays += [jnp.asarray(g[f"param/blocks-1-hook_resid_pre.decoder.{n}"]).T for n in ("weight", "bias")]
    sae = SAE(*arrays, BRAUN)
    have = run((1, 1), sae, hook, g["tokens"], lm)
    assert list(have) == [hook, "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    want = {(hook, "mse"): g[f"term/out_to_in/{hook}"]}
    for suffix in ("", "_ln"):
        swapped = g[f"term/out_to_in/explained_variance{suffix}/{hook}"]
        want[hook, f"explained_variance_swapped{suffix}"] = swapped
    for place, theirs in (("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"), ("blocks.2.hook_resid_post",) * 2):
        want[place, "mse"] = g[f"term/in_to_orig/{theirs}"]
        for suffix in ("", "_ln"):
            paper = g[f"term/in_to_orig/explained_variance{suffix}/{theirs}"]
            want[place, f"explained_variance_paper{suffix}"] = paper
    for (place, name), value in want.items():
        np.testing.assert_allclose(have[place][name], value, rtol=1e-9, err_msg=f"{place} {name}")


def ln(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def ratios(prediction, target):
    """The paper's explained variance, token by token."""
    mean = target.reshape(-1, target.shape[-1]).mean(0)
    one = lambda p, t: 1 - np.sum((p - t) ** 2) / np.sum((t - mean) ** 2)
    return [one(p, t) for context in zip(prediction, target) for p, t in zip(*context)]


def by_numpy(original, changed, own, sizes):
    """All metrics of [b, T, d], in batches of contexts of these sizes."""
    cut = lambda a: np.split(a, np.cumsum(sizes)[:-1])
    per_token = lambda f: np.mean([value for pair in zip(cut(original), cut(changed)) for value in f(*pair)])
    spread = original - original.mean((0, 1))
    out = {
        "mse": ((changed - original) ** 2).mean(),
        "explained_variance": 1 - ((changed - original) ** 2).sum() / (spread**2).sum(),
        "explained_variance_paper": per_token(lambda a, ahat: ratios(ahat, a)),
        "explained_variance_paper_ln": per_token(lambda a, ahat: ratios(ln(ahat), ln(a))),
    }
    if own:
        norm = lambda a: np.linalg.norm(a, axis=-1)
        out |= {
            "explained_variance_swapped": per_token(lambda a, ahat: ratios(a, ahat)),
            "explained_variance_swapped_ln": per_token(lambda a, ahat: ratios(ln(a), ln(ahat))),
            "l2_ratio": (norm(changed) / norm(original)).mean(),
            "cosine": ((changed * original).sum(-1) / norm(changed) / norm(original)).mean(),
        }
    return out


HOOKS = {
    "blocks.0.hook_resid_post": ["blocks.1.hook_resid_post"],
    "blocks.1.hook_resid_post": [],
    "blocks.1.mlp.hook_post": ["blocks.1.hook_resid_post"],
}
FIRST, *REST = HOOKS


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_the_hook_and_the_ends_of_blocks_after_it(kind):
    have = layers.places(f"blocks.1.{kind}", 4)
    first = 2 if kind == "hook_resid_post" else 1
    assert have == [f"blocks.1.{kind}"] + [f"blocks.{layer}.hook_resid_post" for layer in range(first, 4)]


@pytest.mark.parametrize("mesh, hook", [slow((1, 1), FIRST), *(((2, 4), hook) for hook in REST)])
def test_run_equals_numpy_on_every_mesh(x64, mesh, hook):
    """Six contexts in batches of four: the last has two, and neither divides over eight devices."""
    lm, tokens = two_layers(jnp.float64), tiny.random_tokens(6, 5)
    d = 4 * tiny.WIDTH if hook.endswith("mlp.hook_post") else tiny.WIDTH
    sae = dense.random_sae(jax.random.key(0), 64, d, Spec("topk", 4, "unit_norm", "unit_norm", True), jnp.float64)
    have = run(mesh, sae, hook, tokens, lm, batch=4)
    assert list(have) == [hook, *HOOKS[hook]]
    capture = lambda lm, taps: lms.capture(lm, tokens, [hook, *HOOKS[hook]], taps)[0]
    original = jax.jit(lambda lm: capture(lm, {}))(lm)
    x = original[hook]
    xhat = jaxsae.decode(sae, jaxsae.encode(sae, x))
    changed = jax.jit(lambda lm, xhat: capture(lm, {hook: lambda _: xhat}))(lm, xhat)
    for place in have:
        pair = (x, xhat) if place == hook else (original[place], changed[place])
        for view, at in VIEWS.items():
            want = by_numpy(*(np.asarray(a)[:, at] for a in pair), place == hook, (4, 2))
            for name, value in want.items():
                got = have[place][f"{view}{name}"]
                np.testing.assert_allclose(got, value, rtol=1e-9, err_msg=f"{place} {view}{name}")
        assert len(have[place]) == 3 * len(want)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)], ids=str)
def test_tokens_that_training_left_out_keep_their_stream_and_do_not_count(x64, mesh):
    """Padding, position 0 and a token; batches of all contexts."""
    hook, later = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"
    lm, tokens, real = two_layers(jnp.float64), tiny.random_tokens(6, 5), np.arange(5) < 1 + np.arange(6)[:, None]
    sae, skip = dense.random_sae(jax.random.key(0), 64, tiny.WIDTH, BRAUN, jnp.float64), tokens[4, 2]
    kept = real & (np.arange(5) > 0) & (tokens != skip)
    subject = on_text(mesh, sae, hook, 6, lm, positions=5)
    subject.source.tokens, subject.source.first, subject.source.skip = np.where(real, tokens, -1), 1, skip
    have = measure("later_layers", subject, EvaluationConfigs(later_layers=layers.Config(8)))
    capture = lambda lm, taps: lms.capture(lm, tokens, [hook, later], taps)[0]
    original = jax.jit(lambda lm: capture(lm, {}))(lm)
    x = np.asarray(original[hook])
    new = np.where(kept[..., None], jaxsae.decode(sae, jaxsae.encode(sae, x)), x)
    changed = jax.jit(lambda lm, new: capture(lm, {hook: lambda _: new}))(lm, new)
    for place, pair in ((hook, (x, new)), (later, (original[later], changed[later]))):
        want = by_numpy(*(np.asarray(a)[kept][None] for a in pair), place == hook, (1,))
        for name, value in want.items():
            for view in ("", "no_pos0_"):
                np.testing.assert_allclose(have[place][f"{view}{name}"], value, rtol=1e-9, err_msg=f"{place} {name}")
            assert have[place][f"pos0_{name}"] is None


def test_a_batch_without_tokens_adds_nothing():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 6, 8))
    none, some = np.zeros((4, 6), bool), np.arange(24).reshape(4, 6) % 3 > 0
    empty, full = (layers.statistics(jnp.asarray(a), jnp.asarray(b), True, mask) for mask in (none, some))
    for parts in ((empty, full), (full, empty)):
        have = layers.metrics(layers.merge(*jax.device_get(parts)))
        assert have == pytest.approx(layers.metrics(jax.device_get(full)), rel=1e-6)
    assert all(np.isnan(value) for value in layers.metrics(jax.device_get(empty)).values())


def test_position_0_by_itself_equals_numpy(x64):
    random = np.random.default_rng(0)
    a, ahat = random.normal(size=(2, 6, 1, 8)) * 30 + 5
    have = layers.metrics(layers.statistics(jnp.asarray(ahat), jnp.asarray(a), at_autoencoder=True))
    want = by_numpy(a, ahat, True, (6,))
    assert have.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_identity_changes_nothing(hook):
    lm, tokens = two_layers(jnp.float32), tiny.random_tokens(4)
    d = 4 * tiny.WIDTH if hook.endswith("mlp.hook_post") else tiny.WIDTH
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)])
    sae = SAE(both, jnp.zeros(2 * d), both, jnp.zeros(d), BRAUN)
    for place, values in run((1, 1), sae, hook, tokens, lm).items():
        for name, value in values.items():
            want = 0 if name.endswith("mse") else 1
            np.testing.assert_allclose(value, want, atol=1e-5, err_msg=f"{place} {name}")


def test_float32_keeps_its_digits_if_the_mean_is_far_from_zero():
    random = np.random.default_rng(0)
    a = 1000 + random.normal(size=(4, 16, 8))
    ahat = a + 0.3 * random.normal(size=a.shape)
    parts = [layers.statistics(ahat[i : i + 2].astype("f"), a[i : i + 2].astype("f")) for i in (0, 2)]
    have = layers.metrics(layers.merge(*parts))
    want = by_numpy(a, ahat, False, (2, 2))
    for name in ("mse", "explained_variance", "explained_variance_paper"):
        np.testing.assert_allclose(have[name], want[name], rtol=1e-3, err_msg=name)


def test_a_reconstruction_of_nothing_is_no_nan():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("f")
    have = layers.metrics(layers.statistics(jnp.zeros((2, 3, 4)), x, at_autoencoder=True))
    assert have["cosine"] == have["l2_ratio"] == 0 and have["explained_variance"] < 0
    assert json.dumps(have["explained_variance_paper"])


def test_contexts_of_one_token_have_no_other_positions():
    lm, tokens = two_layers(jnp.float32), np.full((4, 1), 7, np.int32)
    sae = dense.random_sae(jax.random.key(0), 64, tiny.WIDTH, BRAUN, jnp.float32)
    have = run((1, 1), sae, "blocks.1.hook_resid_post", tokens, lm)["blocks.1.hook_resid_post"]
    assert not any(name.startswith("no_pos0_") for name in have)
    assert have["mse"] == have["pos0_mse"]
    # All contexts are alike: there is no variance to explain.
    assert have["explained_variance"] is None and have["explained_variance_paper"] is None
