"""Whole training steps against a plain NumPy loop in float64: projection, Adam, renormalisation, EMA, dead counters."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.config import with_fields
from jaxsae.distributed.mesh import make_mesh, shardings
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.layout import LATENTS, TOKENS
from jaxsae.sae.types import Spec, partition_specs
from jaxsae.training import learning_rate
from jaxsae.training.export import ema_weights
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.program import make_program
from jaxsae.training.step import TrainState
from tests import configs
from tests.marks import slow
from tests.sae import dense

B, d, n, k, k_aux, steps = 16, 8, 32, 3, 4, 6
SPEC = Spec("topk", k, "unit_norm", "unit_norm", True)
SAE_CONFIG = SAEConfig(n, k)
# AuxK revives a latent after two idle steps, so it comes on in the middle; one that is idle for longer is dead.
TRAINING = configs.training(
    tokens=B * steps, batch_size=B, lr=0.01, auxk_after=2 * B, dead_after=3 * B, ema=0.9, k_aux=k_aux
)


def data():
    return [jax.random.normal(jax.random.key(10 + s), (B, d), jnp.float64) for s in range(steps)]


def run_steps(mesh, training=TRAINING, upto=steps):
    sae = dense.random_sae(jax.random.key(0), n, d, SPEC, jnp.float64)
    program, optimizer = make_program(SAE_CONFIG, training, d), make_optimizer(SAE_CONFIG, training)
    mesh = make_mesh(*mesh)
    put = lambda tree, specs: jax.device_put(tree, shardings(mesh, specs))
    history = []
    with jax.set_mesh(mesh):
        sae = put(sae, partition_specs(sae))
        zeros = jax.tree.map(jnp.zeros_like, sae)
        idle = put(jnp.zeros(n, jnp.int32), LATENTS)
        state = TrainState(
            sae,
            jax.jit(optimizer.init)(sae),
            zeros,
            idle,
            jnp.asarray(0.7),
            jax.random.key(0),
            jnp.zeros((), jnp.int32),
        )
        for x in data()[:upto]:
            state, metrics = program.step(state, (put(x, TOKENS),), program.hyper)
            history.append({name: float(v) for name, v in metrics.items()})
    return state, history


def reference():
    """The same in NumPy, but for the gradient, which is AD of the dense autoencoder."""
    sae = dense.random_sae(jax.random.key(0), n, d, SPEC, jnp.float64)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    p = {a: np.asarray(getattr(sae, a)) for a in names}
    m, v, ema = ({a: np.zeros_like(p[a]) for a in names} for _ in range(3))
    idle, losses = np.zeros(n, int), []
    for t, x in enumerate(data(), 1):
        x = np.asarray(x)
        x = x - x.mean(1, keepdims=True)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        now = replace(sae, **{a: jnp.asarray(p[a]) for a in names})
        revived = idle >= TRAINING.dead.auxk_after
        loss, grads = jax.value_and_grad(dense.loss)(now, jnp.asarray(x), jnp.asarray(revived), 0.7, 1 / 32, k_aux)
        fired = np.asarray(dense.code(now, jnp.asarray(x)) > 0).any(0)
        g = {a: np.asarray(getattr(grads, a)) for a in names}
        g["W_dec"] = g["W_dec"] - (g["W_dec"] * p["W_dec"]).sum(1, keepdims=True) * p["W_dec"]
        for a in names:
            m[a] = 0.9 * m[a] + 0.1 * g[a]
            v[a] = 0.999 * v[a] + 0.001 * g[a] ** 2
            p[a] = p[a] - 0.01 * (m[a] / (1 - 0.9**t)) / (np.sqrt(v[a] / (1 - 0.999**t)) + 6.25e-10)
        p["W_dec"] = p["W_dec"] / np.linalg.norm(p["W_dec"], axis=1, keepdims=True)
        for a in names:
            ema[a] = ema[a] + 0.1 * (p[a] - ema[a])
        idle = np.where(fired, 0, idle + B)
        losses.append((float(loss), revived.sum(), (idle >= TRAINING.dead.dead_after).mean()))
    return p, ema, idle, losses


@pytest.mark.parametrize("mesh", [slow((1, 1)), (2, 4)], ids=str)
def test_steps_equal_numpy(x64, mesh):
    state, history = run_steps(mesh)
    p, ema, idle, losses = reference()
    assert losses[1][1] == 0 and losses[-1][1] > 0, "the example must have steps without and with dead latents"
    np.testing.assert_allclose([h["loss"] for h in history], [loss for loss, *_ in losses], rtol=1e-10)
    for h, (_, revived, dead) in zip(history, losses):
        assert (h["auxk"] > 0) == (revived > 0) and h["dead_fraction"] == pytest.approx(dead)
    for name in p:
        np.testing.assert_allclose(getattr(state.params, name), p[name], atol=1e-10, err_msg=name)
        np.testing.assert_allclose(getattr(state.ema, name), ema[name], atol=1e-10, err_msg=name)
    np.testing.assert_array_equal(state.idle, idle)
    assert int(state.step) == steps


def test_decoder_rows_stay_unit_norm_and_their_gradient_orthogonal(x64):
    state, _ = run_steps((1, 1))
    np.testing.assert_allclose(jnp.linalg.norm(state.params.W_dec, axis=1), 1, atol=1e-14)
    # Adam's first moment is a mean of projected gradients; after one step it is one of them.
    first = run_steps((1, 1), upto=1)[0]
    start = dense.random_sae(jax.random.key(0), n, d, SPEC, jnp.float64)
    np.testing.assert_allclose((first.opt[1].mu.W_dec * start.W_dec).sum(1), 0, atol=1e-14)


def test_ema_after_one_step_is_the_weights(x64):
    state, _ = run_steps((1, 1), upto=1)
    average = ema_weights(state.ema, state.step, TRAINING.ema_decay())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), average, state.params)


def test_auxk_off_is_never_on(x64):
    _, history = run_steps((1, 1), with_fields(TRAINING, auxk_coef=0.0))
    assert all(h["auxk"] == 0 for h in history)


def test_defaults_follow_the_paper():
    training = configs.training(tokens=100_000_000)
    of = lambda n, **fields: with_fields(SAEConfig(), n=n, **fields)
    paper = configs.training(tokens=10**6, lr="paper")
    assert paper.learning_rate(of(2**14)) == pytest.approx(2e-4) == 2 * paper.learning_rate(of(2**16))
    # By default the rate is that of the number of steps: between one that kills latents and the paper's.
    rate = lambda sae, steps, batch=2048: configs.training(tokens=steps * batch, batch_size=batch).learning_rate(sae)
    assert rate(of(4096, k=16), 1600) == pytest.approx(0.4 / 4 / 40) == rate(of(4096, k=16), 1600, 64)
    assert rate(of(16 * 4096, k=16), 1600) == pytest.approx(0.4 / 8 / 40)
    assert rate(of(4096, k=16), 10) == learning_rate.LARGEST
    assert rate(of(4096, k=16), 10**9) == paper.learning_rate(of(4096))
    # k says nothing of a family with a penalty.
    relu = [rate(of(4096, k=k, activation="relu"), 1600) for k in (16, 64)]
    assert relu == [rate(of(4096), 1600)] * 2
    jumprelu = of(4096, **{"activation": "jumprelu", "target_l0": 256.0})
    assert rate(jumprelu, 1600) == pytest.approx(0.4 * 0.4 / 2 / 40)
    assert training.dead_window() == 10_000_000 and configs.training(tokens=1_000_000).dead_window() == 200_000
    assert training.auxk_window() == 1_250_000 and configs.training(tokens=10**9).auxk_window() == 10_000_000
    assert configs.training(dead_after=700).auxk_window() == 700
    assert configs.training(dead_after=700, auxk_after=300).auxk_window() == 300
    assert training.ema_decay() == 0.999 and configs.training(tokens=2048 * 100).ema_decay() == pytest.approx(0.9)
