"""Autoencoders in series: against the code of Braun et al. 2024 in float64; one of them against the single case."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.errors import BadInput
from jaxsae.mesh import make_mesh, replicate, shardings
from jaxsae.sae.layout import TOKENS
from jaxsae.sae.struct import SAE, partition_specs
from jaxsae.training.config import TrainingConfig
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.series import Site, make_loss, make_series_step
from jaxsae.training.step import Hyper, TrainState
from training.test_end_to_end import config, golden, theirs
from training.test_end_to_end import gradients as alone

NAMES = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_post")
LATER = ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post")
TRAINING = TrainingConfig(
    objective="e2e_downstream", downstream_hooks=LATER, reconstruction_coef=0.3, lr=0.01, ema=0.0, error_unit="one"
)


def two(shared):
    g, lm = golden(shared, "e2e_e2e_two_positions")
    saes = [SAE(*map(jnp.asarray, theirs(g, name.replace(".", "-"))), config().spec()) for name in NAMES]
    return g, lm, saes, [Site(name, config()) for name in NAMES]


def gradients(lm, saes, sites, training, tokens, mesh=(1, 1)):
    loss, mesh = make_loss(sites, training, lm.config), make_mesh(*mesh)
    put = lambda tree, specs: jax.device_put(tree, shardings(mesh, specs))
    with jax.set_mesh(mesh):
        saes = [put(sae, partition_specs(sae)) for sae in saes]
        run = jax.jit(lambda saes, tokens, lm: jax.value_and_grad(loss, has_aux=True)(saes, tokens, 1.5, lm))
        (_, (metrics, _)), grads = run(saes, put(tokens, TOKENS), replicate(lm, mesh))
        return jax.device_get((metrics, grads))


def test_two_positions(x64, shared):
    g, lm, saes, sites = two(shared)
    metrics, grads = gradients(lm, saes, sites, TRAINING, g["tokens"].astype(int))
    want = {"loss": "loss/total", "kl": "term/logits_kl"}
    want |= {f"penalty/{name}": f"term/sparsity/{name}" for name in NAMES}
    want |= {f"reconstruction/{name}": f"term/out_to_in/{name}" for name in NAMES}
    want |= {f"mse/{name}": f"term/in_to_orig/{name}" for name in LATER}
    for ours, name in want.items():
        np.testing.assert_allclose(metrics[ours], g[name], rtol=1e-10, err_msg=ours)
    for name, grad in zip(NAMES, grads):
        for ours, value in zip(
            (grad.W_enc, grad.b_enc, grad.W_dec, grad.b_dec), theirs(g, name.replace(".", "-"), "grad")
        ):
            np.testing.assert_allclose(ours, value, atol=1e-9 * np.abs(value).max(), err_msg=name)


def test_meshes_do_not_show(x64, shared):
    g, lm, saes, sites = two(shared)
    tokens = np.concatenate([g["tokens"], g["tokens"][:1]]).astype(int)
    one, many = (gradients(lm, saes, sites, TRAINING, tokens, mesh) for mesh in ((1, 1), (2, 4)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * np.abs(b).max()), many, one)


def test_one_alone_is_the_single_case(x64, shared):
    g, lm = golden(shared, "e2e_e2e_downstream")
    c, tokens = config(), g["tokens"].astype(int)
    training = TrainingConfig(objective="e2e_downstream", reconstruction_coef=0.3, error_unit="one")
    sae = SAE(*map(jnp.asarray, theirs(g)), c.spec())
    metrics, (grads,) = gradients(lm, [sae], [Site(NAMES[0], c)], training, tokens)
    single, want, _ = alone(lm, sae, c, training, tokens, 1.0, 1.5)
    np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * np.abs(b).max()), grads, single)


def test_what_is_frozen_chooses_as_outside_training(x64, shared):
    g, lm, (sae, _), _ = two(shared)
    c = config(activation="batch_topk", k=4)
    # Nothing passes this threshold, whatever the batch.
    sae, site = SAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, c.spec(), {"threshold": jnp.full(sae.n, 1e6)}), NAMES[0]
    loss, mesh = make_loss([Site(site, c)], TRAINING, lm.config), make_mesh(1, 1)
    with jax.set_mesh(mesh):
        sae, lm = jax.device_put(sae, shardings(mesh, partition_specs(sae))), replicate(lm, mesh)
        tokens = jax.device_put(g["tokens"].astype(int), shardings(mesh, TOKENS))
        run = jax.jit(lambda sae, tokens, lm, trained: loss([sae], tokens, 0.0, lm, trained)[1][0], static_argnums=3)
        assert run(sae, tokens, lm, (False,))[f"l0/{site}"] == 0
        np.testing.assert_allclose(run(sae, tokens, lm, (True,))[f"l0/{site}"], 4)


def test_the_trained_move_and_the_frozen_stay(x64, shared):
    g, lm, saes, sites = two(shared)
    with jax.set_mesh(make_mesh(1, 1)):
        optimizer = make_optimizer("normalised", eps=TRAINING.adam_eps)
        zero = jnp.zeros((), jnp.int32)
        second = TrainState(
            saes[1], optimizer.init(saes[1]), None, jnp.zeros(80, jnp.int32), jnp.ones(()), jax.random.key(0), zero
        )
        step = jax.jit(make_series_step(sites, TRAINING, lm.config))
        states, losses = (saes[0], second), []
        for _ in range(5):
            states, metrics = step(states, g["tokens"].astype(int), Hyper(0.01, 0.0, 1.5, 10**6), lm)
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[0], g["loss/total"], rtol=1e-10)
    assert losses == sorted(losses, reverse=True)
    jax.tree.map(np.testing.assert_array_equal, states[0], saes[0])
    assert int(states[1].step) == 5 and float(jnp.abs(states[1].params.W_enc - saes[1].W_enc).max()) > 0.01


def test_autoencoders_in_series_have_one_reconstruction(x64, shared):
    lm = golden(shared, "e2e_e2e_two_positions")[1]
    sae = config()
    for changed, said in (
        (replace(sae, activation="multi_topk", penalty=""), "multi_topk has several"),
        (replace(sae, prefixes=(8, sae.n)), "prefixes has several"),
    ):
        with pytest.raises(BadInput, match=said):
            make_loss([Site(NAMES[0], changed)], TRAINING, lm.config)


def test_an_autoencoder_in_series_is_what_its_site_says(x64, shared):
    g, lm, saes, sites = two(shared)
    other = [sites[0], replace(sites[1], sae=replace(sites[1].sae, normalise="unit_norm"))]
    with pytest.raises(BadInput, match=rf"{NAMES[1]} has normalise none, not unit_norm"):
        gradients(lm, saes, other, TRAINING, g["tokens"].astype(int))


@pytest.mark.parametrize(
    "hooks, training, said",
    [
        (NAMES[::-1], TRAINING, "in their order"),
        ((NAMES[0], NAMES[0]), TRAINING, "each once"),
        ((), TRAINING, "in their order"),
        (("blocks.1.hook_mlp_out",), TRAINING, "residual stream"),
        (NAMES, TrainingConfig(), "local in series"),
        (NAMES, replace(TRAINING, error_unit="variance"), "no error_unit"),
        (NAMES, replace(TRAINING, resample_every=500_000), "no resample_every"),
    ],
)
def test_bad_series(x64, shared, hooks, training, said):
    lm = golden(shared, "e2e_e2e_two_positions")[1]
    with pytest.raises(BadInput, match=said):
        make_loss([Site(hook, config()) for hook in hooks], training, lm.config)
