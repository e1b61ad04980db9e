"""`evaluate` against a plain loop over tokens, on one device and on a mesh."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from lm import tiny

from jaxsae.evals.report import evaluate
from jaxsae.mesh import make_mesh, shardings
from jaxsae.sae.struct import SAE, Spec, partition_specs
from sae import dense

K, POSITIONS, MSE_SCALE = 4, 8, 0.7
SPEC = Spec("topk", K, "unit_norm", "unit_norm", True)
MESHES = [(1, 1), (2, 4)]
OF_LM = ("ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered", "total_variation", "top1_consistency")


def two_layers():
    """The tiny model in float64 without its third block, which would only take time to compile."""
    lm = tiny.model(dtype=jnp.float64)
    return replace(lm, config=replace(lm.config, n_layer=2))


@partial(jax.jit, static_argnames="hook")
def sharded_prefix(lm, tokens, hook):
    local = lambda lm, tokens: lm.prefix(tokens, hook)
    return jax.shard_map(local, in_specs=(P(), P("data")), out_specs=P("data"))(lm, tokens)


@partial(jax.jit, static_argnames="hook")
def logits_with(lm, tokens, hook, new):
    return lm.run(tokens, {hook: lambda _: new})


class Text:
    """Activations of the tiny model on random tokens: as much of a source as `evaluate` wants."""

    dtype, shape, rows = np.int32, (POSITIONS,), POSITIONS

    def __init__(self, lm, hook, contexts):
        self.lm, self.hook, self.tokens = lm, hook, tiny.random_tokens(contexts, POSITIONS)
        self.width = 4 * tiny.WIDTH if hook.endswith("mlp.hook_post") else tiny.WIDTH

    def __len__(self):
        return len(self.tokens)

    def host(self, start, stop):
        return self.tokens[np.arange(start, stop) % len(self)]

    def activations(self, host):
        return sharded_prefix(self.lm, host, self.hook)


class Files:
    """Activations that are there already, [contexts, rows, d]."""

    def __init__(self, x):
        self.x, self.dtype, self.shape = x, x.dtype, x.shape[1:]
        self.rows, self.width = self.shape

    def __len__(self):
        return len(self.x)

    def host(self, start, stop):
        return self.x[np.arange(start, stop) % len(self)]

    def activations(self, host):
        return host


def random_saes(d, n=64):
    make = lambda seed: dense.random_sae(jax.random.key(seed), n, d, SPEC, jnp.float64)
    return {"": make(0), "raw_": make(1)}


def exact_sae(d):
    """A TopK autoencoder that returns its input: a latent for each sign of each coordinate."""
    both = jnp.concatenate([jnp.eye(d), -jnp.eye(d)])
    zero = jnp.zeros(d)
    return SAE(both, jnp.zeros(2 * d), both, zero, Spec("topk", 2 * d, "unit_norm", "free", True))


def placed(mesh, saes):
    put = lambda sae: jax.device_put(sae, shardings(mesh, partition_specs(sae)))
    return {name: put(sae) for name, sae in saes.items()}


def measure(mesh_shape, saes, hook, contexts=8, tokens=10**6):
    mesh = make_mesh(*mesh_shape)
    lm = jax.device_put(two_layers(), NamedSharding(mesh, P()))
    source = Text(lm, hook, contexts)
    return evaluate(placed(mesh, saes), source, mesh, tokens, MSE_SCALE, lm=lm, hook=hook, quiet=True)


def normalised(x):
    """The specification's unit norm, in NumPy: rows, means and scales."""
    mean = x.mean(-1, keepdims=True)
    scale = np.linalg.norm(x - mean, axis=-1, keepdims=True)
    return (x - mean) / scale, mean, scale


def reconstruction_by_loop(sae, x, skip):
    """Loss, NMSE, L0 of x [b, T, d] without its first `skip` positions; and NMSE by position."""
    x, _, _ = normalised(x[:, skip:])
    z = np.asarray(dense.code(sae, x.reshape(-1, x.shape[-1])))
    error = (x - np.asarray(dense.reconstruct(sae, z)).reshape(x.shape)) ** 2
    spread = (x - x.mean((0, 1))) ** 2
    values = {"loss": MSE_SCALE * error.mean(), "nmse": error.sum() / spread.sum()}
    return values | {"l0": (z > 0).sum(1).mean()}, error.sum((0, 2)) / spread.sum((0, 2))


def downstream_by_loop(lm, sae, tokens, hook, x, skip):
    """The metrics that need a language model, token by token, from position `skip` on."""
    normal, mean, scale = normalised(x)
    z = dense.code(sae, normal.reshape(-1, x.shape[-1]))
    xhat = np.asarray(dense.reconstruct(sae, z)).reshape(x.shape) * scale + mean
    log_p = {
        name: scipy.special.log_softmax(logits_with(lm, tokens, hook, new), -1)
        for name, new in {"original": x, "substituted": xhat, "zero": 0 * x}.items()
    }
    ce, kl = {name: [] for name in log_p}, []
    for c in range(len(tokens)):
        for t in range(skip, POSITIONS):
            p, q = log_p["original"][c, t], log_p["substituted"][c, t]
            kl.append((np.exp(p) * (p - q)).sum())
            if t + 1 < POSITIONS:
                for name in ce:
                    ce[name].append(-log_p[name][c, t, tokens[c, t + 1]])
    original, substituted, zero = (np.mean(ce[name]) for name in ("original", "substituted", "zero"))
    recovered = (zero - substituted) / (zero - original)
    p, q = (np.exp(log_p[name][:, skip:]) for name in ("original", "substituted"))
    variation, same = np.abs(p - q).sum(-1).mean() / 2, (p.argmax(-1) == q.argmax(-1)).mean()
    values = original, substituted, substituted - original, np.mean(kl), recovered, variation, same
    return dict(zip(OF_LM, values, strict=True))


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.0.mlp.hook_post"])
def test_evaluate_equals_a_loop_on_every_mesh(x64, hook):
    lm = two_layers()
    source = Text(lm, hook, 8)
    saes, tokens = random_saes(source.width), source.tokens
    x = np.asarray(jax.jit(lambda lm: lm.prefix(tokens, hook))(lm))
    want, want_by_position = {}, {}
    for prefix, sae in saes.items():
        for view, skip in (("", 0), ("no_pos0_", 1)):
            values, by_position = reconstruction_by_loop(sae, x, skip)
            values |= downstream_by_loop(lm, sae, tokens, hook, x, skip)
            want |= {f"{prefix}{view}{name}": value for name, value in values.items()}
            if not skip:
                want_by_position[f"{prefix}nmse_by_position"] = by_position
    for mesh in MESHES:
        have, by_position = measure(mesh, saes, hook)
        assert have.keys() == want.keys() and by_position.keys() == want_by_position.keys()
        for name in want:
            np.testing.assert_allclose(have[name], want[name], rtol=1e-9, err_msg=f"{mesh} {name}")
        for name in want_by_position:
            np.testing.assert_allclose(by_position[name], want_by_position[name], rtol=1e-9)


def test_several_batches_are_one_mean(x64):
    """Batches have 4096 tokens at most, and logits are computed for 1024 at once."""
    hook, sae = "blocks.0.hook_resid_post", random_saes(tiny.WIDTH)[""]
    lm = two_layers()
    tokens = Text(lm, hook, 1024).tokens
    x = np.asarray(jax.jit(lambda lm: lm.prefix(tokens, hook))(lm))
    # Two batches, and the first of them alone.
    for contexts in (1024, 512):
        have, _ = measure((2, 1), {"": sae}, hook, 1024, contexts * POSITIONS)
        want, _ = reconstruction_by_loop(sae, x[:contexts], 0)
        want |= downstream_by_loop(lm, sae, tokens[:contexts], hook, x[:contexts], 0)
        for name, value in want.items():
            np.testing.assert_allclose(have[name], value, rtol=1e-9, err_msg=name)


HOOKS = ["blocks.0.hook_resid_mid", "blocks.1.hook_attn_out"]


@pytest.mark.parametrize("mesh, hook", list(zip(MESHES, HOOKS)), ids=str)
def test_an_exact_autoencoder_loses_nothing(x64, mesh, hook):
    have, by_position = measure(mesh, {"": exact_sae(tiny.WIDTH)}, hook)
    for view in ("", "no_pos0_"):
        for name in ("loss", "nmse", "delta_ce", "kl"):
            assert abs(have[f"{view}{name}"]) < 1e-12, name
        np.testing.assert_allclose(have[f"{view}ce_recovered"], 1, atol=1e-12)
        # Of a coordinate's two signs one is positive.
        assert have[f"{view}l0"] == tiny.WIDTH
    assert max(by_position["nmse_by_position"]) < 1e-12


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_activations_without_a_language_model(x64, mesh):
    x = np.random.default_rng(0).normal(size=(6, 5, 12)) + 1
    saes, grid = random_saes(12), make_mesh(*mesh)
    have, have_by = evaluate(placed(grid, saes), Files(x), grid, 10**6, MSE_SCALE, quiet=True)
    assert have.keys() == {p + n for p in saes for n in ("loss", "nmse", "l0", *OF_LM)}
    for prefix, sae in saes.items():
        want, by_position = reconstruction_by_loop(sae, x, 0)
        want |= dict.fromkeys(OF_LM)
        for name, value in want.items():
            if value is None:
                assert have[prefix + name] is None, name
            else:
                np.testing.assert_allclose(have[prefix + name], value, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(have_by[f"{prefix}nmse_by_position"], by_position, rtol=1e-9)


def test_predicting_the_mean_has_nmse_one(x64):
    x = np.random.default_rng(0).normal(size=(8, 5, 12)) + 1
    sae, grid = random_saes(12)[""], make_mesh(2, 4)
    mean = jnp.asarray(normalised(x)[0].mean((0, 1)))
    constant = sae.replace(W_dec=jnp.zeros_like(sae.W_dec), b_dec=mean)
    have, _ = evaluate(placed(grid, {"": constant}), Files(x), grid, 40, MSE_SCALE, quiet=True)
    np.testing.assert_allclose(have["nmse"], 1, rtol=1e-12)


@pytest.mark.parametrize("tokens, contexts", [(1, 1), (20, 4), (24, 4), (10**9, 6)])
def test_as_many_tokens_are_read_as_asked_and_there_are(x64, tokens, contexts):
    x = np.random.default_rng(0).normal(size=(6, 5, 12))
    saes, grid = {"": random_saes(12)[""]}, make_mesh(1, 1)
    have, _ = evaluate(placed(grid, saes), Files(x), grid, tokens, MSE_SCALE, quiet=True)
    want, _ = reconstruction_by_loop(saes[""], x[:contexts], 0)
    np.testing.assert_allclose(have["nmse"], want["nmse"], rtol=1e-9)
