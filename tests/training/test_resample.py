"""Resampling of dead latents against NumPy, over meshes, and the odds of the draw."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from scipy.stats import chisquare

from jaxsae.distributed.mesh import make_mesh
from jaxsae.sae.activation_functions import default_options
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.layout import LATENTS, REPLICATED, TOKENS
from jaxsae.sae.types import Spec
from jaxsae.training.config import TrainingConfig
from jaxsae.training.export import ema_weights, finished
from jaxsae.training.objectives import Batch
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.program import make_objective
from jaxsae.training.resample import candidates, draw, make_resample, resample
from jaxsae.training.step import TrainState, hyper
from tests import configs
from tests.marks import slow
from tests.sae import dense

B, d, n, WINDOW, DECAY, STEP = 32, 12, 64, 100, 0.9, 5
SPECS = {
    "relu normalised": Spec("relu", 3, "none", "normalised", True),
    "relu free": Spec("relu", 3, "none", "free", False),
    "topk": Spec("topk", 3, "none", "unit_norm", True),
    "jumprelu": Spec("jumprelu", 3, "none", "unit_norm", True),
}


def own(spec):
    return default_options(spec.activation).own


def example(spec, dead, mesh=(1, 1)):
    """A state in the middle of a run, with moments and averages of random numbers, and a batch; both on a mesh."""
    key = jax.random.key(7)
    sae = dense.random_sae(key, n, d, spec, jnp.float64)
    extra = {"log_threshold": jnp.linspace(-3, -1, n)} if spec.activation == "jumprelu" else {}
    raw = 1 if spec.decoder == "unit_norm" else jnp.linspace(0.5, 2, n)[:, None]
    sae = sae.replace(W_dec=raw * sae.W_dec, extra=extra)
    noise = lambda a: jax.random.uniform(jax.random.fold_in(key, a.size), a.shape, a.dtype)
    opt = jax.tree.map(
        lambda a: noise(a) if a.dtype == jnp.float64 else a,
        make_optimizer(SAEConfig(n, 3, spec.activation, decoder=spec.decoder), TrainingConfig()).init(sae),
    )
    # Just dead, or almost.
    idle = jnp.where(dead, WINDOW, WINDOW - 1).astype(jnp.int32)
    state = TrainState(
        sae, opt, jax.tree.map(noise, sae), idle, jnp.asarray(0.7), jax.random.key(3), jnp.asarray(STEP, jnp.int32)
    )
    mesh = make_mesh(*mesh)
    put = lambda a: jax.device_put(a, NamedSharding(mesh, LATENTS if a.shape[:1] == (n,) else REPLICATED))
    x = jax.random.normal(jax.random.key(1), (B, d), jnp.float64) * jnp.linspace(0.2, 3, B)[:, None]
    return mesh, jax.tree.map(put, state), jax.device_put(x, NamedSharding(mesh, TOKENS))


def resampled(spec, dead, mesh=(1, 1)):
    """The state before, the batch, and the state after; as NumPy."""
    mesh, state, x = example(spec, jnp.asarray(dead), mesh)
    with jax.set_mesh(mesh):
        odds, directions = jax.jit(candidates)(state.params, x)
        after = jax.jit(resample, static_argnums=5)(state, odds, directions, WINDOW, DECAY, own(spec))
        same = jax.tree.map(lambda a, b: jax.typeof(a) == jax.typeof(b), state, after)
        assert all(jax.tree.leaves(same)), "shardings, shapes and dtypes must not change"
    plain = lambda state: jax.device_get(replace(state, key=jax.random.key_data(state.key)))
    return plain(state), jax.device_get(x), plain(after), jax.device_get((odds, directions))


def drawn(before, odds, dead):
    """The tokens of all dead latents, in their order; the first B of them."""
    key = jax.random.fold_in(jax.random.key(3), STEP)
    fresh, token = draw(key, jnp.asarray(odds), jnp.asarray(dead))
    assert fresh.sum() == min(B, dead.sum()) and len(set(token[fresh].tolist())) == fresh.sum()
    return np.asarray(fresh), np.asarray(token)


MASKS = {"some": np.arange(n) % 5 == 0, "all": np.ones(n, bool)}


@pytest.mark.parametrize("which", MASKS)
@pytest.mark.parametrize("name", SPECS)
def test_equals_numpy(x64, name, which):
    spec, dead = SPECS[name], MASKS[which]
    before, x, after, (odds, _) = resampled(spec, dead)
    fresh, token = drawn(before, odds, dead)
    norm = lambda W: np.linalg.norm(W, axis=1)
    mean = lambda W: norm(W)[~dead].mean() if which == "some" else 1.0
    p = before.params
    unit = x[token] - p.b_dec if spec.subtract_b_dec else x[token]
    unit = unit / norm(unit)[:, None]
    new = {
        "W_enc": 0.2 * mean(p.W_enc) * unit,
        "b_enc": np.zeros(n),
        "W_dec": unit * (mean(p.W_dec) if spec.decoder == "normalised" else 1),
    }
    adam = lambda state: next(part for part in state.opt if isinstance(part, optax.ScaleByAdamState))
    for a, value in new.items():
        where = fresh.reshape(-1, *(1,) * (value.ndim - 1))
        want = np.where(where, value, getattr(p, a))
        np.testing.assert_allclose(getattr(after.params, a), want, atol=1e-14, err_msg=a)
        want = np.where(where, (1 - DECAY**STEP) * value, getattr(before.ema, a))
        np.testing.assert_allclose(getattr(after.ema, a), want, atol=1e-14, err_msg=a)
        for moment in ("mu", "nu"):
            want = np.where(where, 0, getattr(getattr(adam(before), moment), a))
            np.testing.assert_array_equal(getattr(getattr(adam(after), moment), a), want)
    for e in before.params.extra:
        # Only JumpReLU has one here: thresholds start again too.
        value = np.log(0.001)
        want = np.where(fresh, value, before.params.extra[e])
        np.testing.assert_allclose(after.params.extra[e], want, rtol=1e-6)
        want = np.where(fresh, (1 - DECAY**STEP) * value, before.ema.extra[e])
        np.testing.assert_allclose(after.ema.extra[e], want, rtol=1e-6)
        np.testing.assert_array_equal(adam(after).nu.extra[e], np.where(fresh, 0, adam(before).nu.extra[e]))
    np.testing.assert_array_equal(after.idle, np.where(fresh, 0, before.idle))
    for part in (lambda s: s.params.b_dec, lambda s: s.ema.b_dec, lambda s: adam(s).mu.b_dec, lambda s: s.step):
        np.testing.assert_array_equal(part(after), part(before))
    # The average that would be exported now.
    average = finished(ema_weights(after.ema, after.step, DECAY))
    np.testing.assert_allclose(average.W_enc[fresh], after.params.W_enc[fresh], atol=1e-14)
    np.testing.assert_allclose(average.W_dec[fresh], unit[fresh], atol=1e-14)


@pytest.mark.parametrize("name", SPECS)
def test_meshes_do_not_show(x64, name):
    for dead in MASKS.values():
        one, other = (resampled(SPECS[name], dead, shape)[2] for shape in ((1, 1), (2, 4)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), other, one)


@pytest.mark.parametrize("mesh", [slow((1, 1)), (2, 4)], ids=str)
@pytest.mark.parametrize("end_to_end", [False, True])
def test_micro_batches_do_not_show(x64, end_to_end, mesh):
    """Tokens keep their order, so the same ones are drawn."""
    mesh, state, x = example(SPECS["topk"], jnp.arange(n) % 5 == 0, mesh)

    # Contexts of two tokens; the table stands for a language model.
    def read(ids, table, scale_out=None):
        rows = table.at[ids.reshape(-1)].get(out_sharding=TOKENS)
        return Batch(rows, rows, rows[:, 0], rows[:, 0])

    sae_config = SAEConfig(n, 3, normalise="none")
    local = make_objective([("", sae_config)], TrainingConfig())
    objective = replace(local, prepare=read) if end_to_end else local
    batch = jax.device_put(np.arange(B).reshape(-1, 2), NamedSharding(mesh, TOKENS)) if end_to_end else (x,)
    table = jax.device_put(x, NamedSharding(mesh, REPLICATED))

    def after(pieces):
        training = configs.training(
            tokens=10 * WINDOW, batch_size=B, micro_batches=pieces, dead_after=WINDOW, ema=DECAY
        )
        run = jax.jit(make_resample(sae_config, training, objective))
        return jax.device_get(run(state, batch, hyper(sae_config, training), table).params)

    with jax.set_mesh(mesh):
        whole, pieces = after(1), after(4)
    assert not np.array_equal(whole.W_enc, state.params.W_enc)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), pieces, whole)


@pytest.mark.parametrize("name", SPECS)
def test_without_dead_latents_nothing_changes(x64, name):
    before, _, after, _ = resampled(SPECS[name], np.zeros(n, bool))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_run_without_an_average_has_none_afterwards(x64):
    mesh, state, x = example(SPECS["topk"], jnp.arange(n) < 9)
    with jax.set_mesh(mesh):
        found = candidates(state.params, x)
        after = jax.jit(resample, static_argnums=(4, 5))(
            replace(state, ema=None), *found, WINDOW, 0.0, own(SPECS["topk"])
        )
    assert after.ema is None and (after.idle[:9] == 0).all()


def test_odds_are_squares_of_the_squared_error(x64):
    before, x, _, (odds, _) = resampled(SPECS["topk"], MASKS["some"])
    p = before.params
    z = (x - p.b_dec) @ p.W_enc.T + p.b_enc
    z = np.where(np.asarray(dense.top_mask(jnp.asarray(z), 3)) & (z > 0), z, 0)
    error = ((z @ p.W_dec + p.b_dec - x) ** 2).sum(1)
    np.testing.assert_allclose(odds, 2 * np.log(error), atol=1e-12)


def test_tokens_are_drawn_as_often_as_their_odds_say():
    p = np.arange(1, 7) ** 2 / 91
    dead, draws = jnp.array([False, True, False, True]), 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    fresh, token = jax.jit(jax.vmap(lambda key: draw(key, jnp.log(p) + 5, dead)))(keys)
    assert (fresh == dead).all()
    # One token after the other, and none twice.
    pairs = (p / (1 - p))[:, None] * p
    seen = np.zeros((6, 6))
    np.add.at(seen, (np.asarray(token[:, 1]), np.asarray(token[:, 3])), 1)
    assert np.trace(seen) == 0
    off = ~np.eye(6, dtype=bool)
    assert chisquare(seen[off], draws * pairs[off]).pvalue > 0.01
    assert chisquare(seen.sum(1), draws * p).pvalue > 0.01


def test_tokens_without_odds_are_not_drawn():
    logits = jnp.array([-jnp.inf, 0.0, -jnp.inf, 1.0])
    fresh, token = draw(jax.random.key(0), logits, jnp.array([True, False, True, True]))
    assert fresh.tolist() == [True, False, True, False] and sorted(token[fresh].tolist()) == [1, 3]


def test_a_token_without_direction_has_no_odds(x64):
    mesh, state, x = example(SPECS["topk"], jnp.arange(n) < 9)
    with jax.set_mesh(mesh):
        x = jnp.where(jnp.arange(B)[:, None] == 0, state.params.b_dec, x)
        odds, directions = jax.jit(candidates)(state.params, x)
    assert odds[0] == -jnp.inf and (directions[0] == 0).all() and jnp.isfinite(odds[1:]).all()
