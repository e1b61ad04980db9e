"""Autoencoders in series: against the code of Braun et al. 2024 in float64; one of them against the single case."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.config import with_fields
from jaxsae.distributed.mesh import make_mesh, replicate, shardings
from jaxsae.errors import BadInput
from jaxsae.sae.layout import TOKENS
from jaxsae.sae.types import SAE, partition_specs
from jaxsae.training.config import TrainingConfig
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.program import make_objective
from jaxsae.training.records import Hyper
from jaxsae.training.sites import make_gradient_of_sites, make_step_of_sites
from jaxsae.training.step import TrainState
from tests import configs
from tests.training.test_end_to_end import config, golden, theirs
from tests.training.test_end_to_end import gradients as alone

NAMES = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_post")
LATER = ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post")
TRAINING = configs.training(
    objective="e2e_downstream",
    downstream_hooks=LATER,
    reconstruction_coef=0.3,
    lr=0.01,
    ema=0.0,
    mse_scale="none",
    tokens=10_000,
    batch_size=100,
)


def two(shared):
    g, lm = golden(shared, "e2e_e2e_two_positions")
    saes = [SAE(*map(jnp.asarray, theirs(g, name.replace(".", "-"))), config().spec()) for name in NAMES]
    return g, lm, saes, [(name, config()) for name in NAMES]


def gradients(lm, saes, sites, training, tokens, mesh=(1, 1), sparsity=1.5, learns=None):
    objective, mesh = make_objective(sites, training, lm.config), make_mesh(*mesh)
    gradient = make_gradient_of_sites([sae for _, sae in sites], training, objective, learns)
    put = lambda tree, specs: jax.device_put(tree, shardings(mesh, specs))
    with jax.set_mesh(mesh):
        saes = tuple(put(sae, partition_specs(sae)) for sae in saes)
        hyper = Hyper(sparsity=sparsity, mse_scale=jnp.ones(len(sites)))
        run = jax.jit(lambda saes, tokens, lm: gradient(saes, tokens, hyper, lm)[:2])
        grads, metrics = run(saes, put(tokens, TOKENS), replicate(lm, mesh))
        return jax.device_get((metrics, grads))


def test_two_positions(x64, shared):
    g, lm, saes, sites = two(shared)
    metrics, grads = gradients(lm, saes, sites, TRAINING, g["tokens"].astype(int))
    want = {"loss": "loss/total", "kl": "term/logits_kl"}
    want |= {f"penalty/{name}": f"term/sparsity/{name}" for name in NAMES}
    want |= {f"mse/{name}": f"term/in_to_orig/{name}" for name in LATER}
    for ours, name in want.items():
        np.testing.assert_allclose(metrics[ours], g[name], rtol=1e-10, err_msg=ours)
    total = sum(g[f"term/out_to_in/{name}"] for name in NAMES)
    np.testing.assert_allclose(metrics["reconstruction"], total, rtol=1e-10)
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
    training = configs.training(objective="e2e_downstream", reconstruction_coef=0.3, mse_scale="none")
    sae = SAE(*map(jnp.asarray, theirs(g)), c.spec())
    metrics, (grads,) = gradients(lm, [sae], [(NAMES[0], c)], training, tokens)
    single, want, _ = alone(lm, sae, c, training, tokens, 1.0, 1.5)
    np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * np.abs(b).max()), grads, single)


def test_what_is_frozen_chooses_as_outside_training(x64, shared):
    g, lm, (sae, other), _ = two(shared)
    c = config(activation="batch_topk", k=4)
    # Nothing passes this threshold, whatever the batch.
    sae = SAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, c.spec(), {"threshold": jnp.full(sae.n, 1e6)})
    sites = [(NAMES[0], c), (NAMES[1], config())]
    l0 = lambda learns: gradients(lm, [sae, other], sites, TRAINING, g["tokens"].astype(int), learns=learns)
    metrics, grads = l0([False, True])
    assert metrics[f"l0/{NAMES[0]}"] == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads[0])), "a frozen one gets no gradient"
    metrics, _ = l0([True, True])
    np.testing.assert_allclose(metrics[f"l0/{NAMES[0]}"], 4)
    assert f"capped_tokens/{NAMES[0]}" in metrics


def test_the_trained_move_and_the_frozen_stay(x64, shared):
    g, lm, saes, sites = two(shared)
    with jax.set_mesh(make_mesh(1, 1)):
        optimizer = make_optimizer(config(), TRAINING)
        zero = jnp.zeros((), jnp.int32)
        second = TrainState(
            saes[1], optimizer.init(saes[1]), None, jnp.zeros(80, jnp.int32), jnp.ones(()), jax.random.key(0), zero
        )
        objective = make_objective(sites, TRAINING, lm.config)
        step = jax.jit(make_step_of_sites([sae for _, sae in sites], TRAINING, objective))
        states, losses = (saes[0], second), []
        for _ in range(5):
            states, metrics = step(states, g["tokens"].astype(int), Hyper(0.01, 0.0, 1.5, 10**6), lm)
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[0], g["loss/total"], rtol=1e-10)
    assert losses == sorted(losses, reverse=True)
    jax.tree.map(np.testing.assert_array_equal, states[0], saes[0])
    assert int(states[1].step) == 5 and float(jnp.abs(states[1].params.W_enc - saes[1].W_enc).max()) > 0.01


def test_every_site_uses_its_own_activation_function(x64, shared):
    """A TopK autoencoder after a gated one, over a mesh as on one device."""
    g, lm, saes, _ = two(shared)
    first = config(activation="gated")
    second = config(activation="topk", k=5, normalise="unit_norm")
    zeros = jnp.zeros(saes[0].n)
    saes = [
        replace(saes[0], spec=first.spec(), extra={"r_mag": zeros, "b_mag": zeros}),
        replace(saes[1], spec=second.spec()),
    ]
    tokens = np.concatenate([g["tokens"], g["tokens"][:1]]).astype(int)
    run = lambda mesh: gradients(lm, saes, list(zip(NAMES, (first, second))), TRAINING, tokens, mesh)
    one, many = run((1, 1)), run((2, 4))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * max(np.abs(b).max(), 1e-3))
    jax.tree.map(close, many, one)


def test_autoencoders_in_series_have_one_reconstruction(x64, shared):
    lm = golden(shared, "e2e_e2e_two_positions")[1]
    for several in (config(activation="multi_topk"), config(prefixes=(8, 80))):
        sites = [(NAMES[0], config()), (NAMES[1], several)]
        with pytest.raises(BadInput, match=f"{NAMES[1]}.*several reconstructions"):
            make_gradient_of_sites([sae for _, sae in sites], TRAINING, make_objective(sites, TRAINING, lm.config))
    sites = [(name, config()) for name in NAMES]
    for changed, message in (
        ({"micro_batches": 2}, "batches are whole"),
        ({"auxk_coef": 0.1}, "no AuxK"),
        ({"resample_every": 1, "dead_after": 1}, "not resampled"),
    ):
        training = with_fields(TRAINING, **changed)
        with pytest.raises(BadInput, match=message):
            make_gradient_of_sites([sae for _, sae in sites], training, make_objective(sites, training, lm.config))


def test_an_autoencoder_in_series_is_what_its_site_says(x64, shared):
    g, lm, saes, sites = two(shared)
    other = [sites[0], (NAMES[1], replace(sites[1][1], normalise="unit_norm"))]
    with pytest.raises(BadInput, match=rf"{NAMES[1]} has normalise none, not unit_norm"):
        gradients(lm, saes, other, TRAINING, g["tokens"].astype(int))


@pytest.mark.parametrize(
    "hooks, training, message",
    [
        (NAMES[::-1], TRAINING, "in the order"),
        ((NAMES[0], NAMES[0]), TRAINING, "each once"),
        ((), TRAINING, "in the order"),
        (("blocks.1.hook_mlp_out",), TRAINING, "residual stream"),
        (NAMES, TrainingConfig(), "--objective local trains one autoencoder"),
    ],
)
def test_bad_sites(x64, shared, hooks, training, message):
    lm = golden(shared, "e2e_e2e_two_positions")[1]
    with pytest.raises(BadInput, match=message):
        make_objective([(hook, config()) for hook in hooks], training, lm.config)
