"""The count of FLOPs against XLA's own of the compiled gradient and step, for every family.

XLA counts the body of a loop once, however often it runs. Two kinds of loops matter:

- The loops over slots (sae/sparse.py): each is compiled once as it is, and once as two loops one after the other. The
  difference is the cost of one slot, and with the slots that are missing XLA's count is that of the whole.
- AuxK's loops over blocks of dead latents: at most 512 latents are one block, so a body that is counted once is all.

Of the two branches of a condition XLA counts the dearer one, so the step of a local objective is always one in which
AuxK revives latents. The gradient without AuxK is that of an objective without this condition.
"""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.config import with_fields
from jaxsae.sae import activation_functions, sparse
from jaxsae.sae.config import SAEConfig
from jaxsae.scaling import flops
from jaxsae.training.config import TrainingConfig
from jaxsae.training.gradient import make_gradient
from jaxsae.training.program import make_program
from jaxsae.training.records import Hyper
from tests.marks import slow

# So wide that what costs O(d) or O(n) a token is below the tolerance.
N, D, B, K = 512, 128, 128, 16


@pytest.fixture
def xla_flops(monkeypatch):
    """xla_flops(sae, auxk) -> FLOPs of the gradient of a batch, or of a step, with every slot."""

    def with_loops(count, *args):
        def loop(start, stop, body, carry):
            for _ in range(count):
                carry = lax.fori_loop(start, stop, body, carry)
            return carry

        monkeypatch.setattr(sparse, "lax", SimpleNamespace(fori_loop=loop))
        return compiled_flops(*args)

    def run(sae, auxk, whole_step=False, batch=B):
        if activation_functions.get(sae.activation).dense:
            return compiled_flops(sae, auxk, whole_step, batch)
        # A slot costs the same with AuxK, whose program takes longer to compile.
        one, two = (with_loops(count, sae, False, False, batch) for count in (1, 2))
        all_once = one if (auxk, whole_step) == (False, False) else with_loops(1, sae, auxk, whole_step, batch)
        return all_once + (flops.n_slots(sae) - 1) * (two - one)

    return run


def compiled_flops(sae: SAEConfig, auxk: bool, whole_step: bool, batch: int) -> float:
    """XLA's count for the gradient of a batch, or for a step, on one device."""
    training = with_fields(TrainingConfig(), batch_size=batch, auxk_coef=1 / 32 if auxk else 0.0)
    mesh = jax.make_mesh((1, 1), ("data", "latent"), devices=jax.devices()[:1])
    on = lambda shape, dtype, axis: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(axis)))
    program = make_program(sae, training, D)
    state, x = program.abstract_state(mesh), on((batch, D), jnp.float32, "data")
    with jax.set_mesh(mesh):
        if whole_step:
            lowered = program.step.lower(state, (x,), program.hyper)
        else:
            # With sites, an objective that has AuxK off has no condition.
            objective = program.objective if auxk else replace(program.objective, sites=("here",))
            gradient = make_gradient(sae, training, objective, training.k_aux(N, D))
            run = lambda sae, x, dead: gradient(sae, (x,), dead, Hyper(mse_scale=1.0, auxk_coef=1 / 32, sparsity=1.0))[
                0
            ]
            lowered = jax.jit(run).lower(state.params, x, on((N,), jnp.bool_, "latent"))
        # What is emitted in the other way is counted twice where it is used twice.
        return lowered.compile({"xla_cpu_use_fusion_emitters": True}).cost_analysis()["flops"]


@pytest.mark.parametrize("auxk", [False, slow(True)])
@pytest.mark.parametrize("activation", activation_functions.REGISTRY)
def test_gradient_of_every_family(activation, auxk, xla_flops):
    sae = SAEConfig(n=N, k=K, activation=activation)
    parts = flops.autoencoder(sae, D) | ({"auxk": flops.auxk(N, D, dead=1.0)} if auxk else {})
    assert sum(parts.values()) == pytest.approx(xla_flops(sae, auxk) / B, rel=0.1)


@pytest.mark.parametrize("activation", ["topk", "multi_topk", "relu", "gated"])
def test_prefixes(activation, xla_flops):
    sae = SAEConfig(n=N, k=4 * K, activation=activation, prefixes=(64, 128, N))
    total = sum(flops.autoencoder(sae, D).values())
    assert total == pytest.approx(xla_flops(sae, auxk=False) / B, rel=0.1)
    # They are a large part of it.
    assert total > 1.3 * sum(flops.autoencoder(replace(sae, prefixes=()), D).values())


def test_values_are_computed_again_after_a_rough_selection(xla_flops):
    exact = SAEConfig(n=N, k=4 * K)
    rough = replace(exact, select_precision="bfloat16")
    more = sum(flops.autoencoder(rough, D).values()) - sum(flops.autoencoder(exact, D).values())
    assert more == pytest.approx((xla_flops(rough, auxk=False) - xla_flops(exact, auxk=False)) / B, rel=0.1)


@pytest.mark.parametrize("decoder", ["unit_norm", slow("free")])
@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_whole_step_with_the_optimizer(activation, decoder, xla_flops):
    """A batch so small that the optimizer is a good part of the step."""
    sae, batch = SAEConfig(n=N, k=K, activation=activation, decoder=decoder), 8
    parts = flops.training(sae, D, batch, dead=1.0)
    assert parts["optimizer"] > 0.15 * sum(parts.values())
    assert sum(parts.values()) == pytest.approx(xla_flops(sae, True, whole_step=True, batch=batch) / batch, rel=0.1)


def test_by_hand():
    sae = SAEConfig(n=1000, k=8)
    assert flops.dense(1000, 64) == 12 * 1000 * 64
    assert flops.autoencoder(sae, 64) == {"select": 2 * 1000 * 64, "decode": 2 * 8 * 64, "gradient": 3 * 2 * 8 * 64}
    # Two blocks of 512, one beyond the one that is kept, whose pre-activations are computed four times.
    assert flops.auxk(1000, 64, dead=0.6) == 5 * 2 * 2 * 512 * 64
    assert flops.auxk(1000, 64, dead=0.6, kept=1) == (5 + 8) * 2 * 512 * 64
    assert flops.auxk(1000, 64, dead=0.0) == 0
    parts = flops.training(sae, 64, 2048, lm_passes=(1, 3), lm=(100, 1000))
    assert parts["lm"] == 3100
    assert parts["optimizer"] * 2048 == flops.optimizer(sae, 64)
    assert flops.optimizer(sae, 64, ema=False) < flops.optimizer(sae, 64)
