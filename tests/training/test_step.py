"""The sharded step against the dense reference, in float64, on five meshes; and what its compiled form contains."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.distributed.mesh import make_mesh, shardings
from jaxsae.sae import auxk, select
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.layout import TOKENS
from jaxsae.sae.types import Spec
from jaxsae.training.program import make_program
from tests import configs
from tests.conftest import MESHES
from tests.marks import slow
from tests.programs import local_gradient
from tests.sae import dense

B, d, n, k, k_aux = 32, 12, 64, 5, 8
SPEC = Spec("topk", k, "none", "unit_norm", True)


def problem(dead_share, dtype=jnp.float64):
    sae = dense.random_sae(jax.random.key(0), n, d, SPEC, dtype)
    x = jax.random.normal(jax.random.key(1), (B, d), dtype)
    dead = jax.random.uniform(jax.random.key(2), (n,)) < dead_share
    return sae, x, dead


def check(mesh, sae, x, dead, memory=1.0, **training):
    """Loss, gradient and counts are those of the dense reference."""
    config = SAEConfig(n, k, normalise="none", select_memory=memory)
    training = configs.training(batch_size=B, **training)
    grads, metrics, fired, _ = local_gradient(mesh, config, training, k_aux, sae, (x,), dead, (0.7, 1 / 32, 0))
    want, want_grads = jax.value_and_grad(dense.loss)(sae, x, dead, 0.7, 1 / 32, k_aux)
    z = dense.code(sae, x)
    error = dense.reconstruct(sae, z) - x
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-12)
    np.testing.assert_allclose(metrics["nmse"], (error**2).mean() / ((x - x.mean(0)) ** 2).mean(), rtol=1e-12)
    np.testing.assert_array_equal(fired, (z > 0).sum(0))
    np.testing.assert_allclose(metrics["l0"], (z > 0).sum(1).mean(), rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), grads, want_grads)


@pytest.mark.parametrize("mesh", [*MESHES[:1], *map(slow, MESHES[1:3]), *MESHES[3:]], ids=str)
def test_loss_and_gradients_equal_dense(x64, mesh):
    for dead_share in (0.0, 0.08, 0.9, 1.0):
        check(mesh, *problem(dead_share))


def test_one_shard_may_own_all_the_dead(x64):
    sae, x, _ = problem(0.0)
    check((1, 8), sae, x, jnp.arange(n) < n // 8)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4), slow((1, 8))], ids=str)
def test_blocks_of_latents_do_not_show(x64, monkeypatch, mesh):
    monkeypatch.setattr(select, "TILE", 3)
    monkeypatch.setattr(auxk, "ROWS", 4)
    for dead_share in (0.0, 0.9):
        # So little memory that a block is one tile; no other test has this configuration.
        check(mesh, *problem(dead_share), memory=1e-9)


@pytest.mark.parametrize("micro_batches", [slow(2), 4])
@pytest.mark.parametrize("mesh", [(1, 1), (2, 4), slow((8, 1))], ids=str)
def test_micro_batches_do_not_show(x64, mesh, micro_batches):
    for dead_share in (0.0, 0.3):
        check(mesh, *problem(dead_share), micro_batches=micro_batches)


def collectives(text):
    """(operation, shape) of every collective in compiled HLO."""
    found = re.findall(
        r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text
    )
    return [
        (op, tuple(map(int, dims.split(",")))) for types, op in found for dims in re.findall(r"\[([\d,]+)\]", types)
    ]


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4), (1, 8)], ids=str)
def test_compiled_step_moves_and_sorts_only_what_the_design_allows(mesh):
    # Sizes that no other dimension shares, so that a shape in the HLO names what it is.
    tokens, width, latents, k, k_aux = 48, 20, 1024, 6, 10
    data, shards = mesh
    training = configs.training(tokens=100 * tokens, batch_size=tokens, k_aux=k_aux)
    program, grid = make_program(SAEConfig(latents, k), training, width), make_mesh(*mesh)
    x = jax.ShapeDtypeStruct((tokens, width), jnp.float32, sharding=shardings(grid, TOKENS))
    with jax.set_mesh(grid):
        text = program.step.lower(program.abstract_state(grid), (x,), program.hyper).compile().as_text()
    assert '"TopK"' in text
    # `sort` over a row of all (or a shard's) latents would be a top-k that XLA did not recognise.
    widths = {latents, latents // shards}
    sorts = re.findall(r"= (.+?) sort\(", text)
    assert not [s for s in sorts if any(f",{w}]" in s for w in widths)], sorts
    local = tokens // data
    moved = collectives(text)
    assert moved or mesh == (1, 1)
    for op, shape in moved:
        has_tokens = len(shape) > 1 and (local in shape or tokens in shape)
        assert not (has_tokens and widths & set(shape)), f"{op} moves {shape}: tokens by latents"
        allowed = local * shards * max(k, k_aux), local * width, latents // shards * width
        assert np.prod(shape) <= max(allowed), f"{op} moves {shape}"
    # No [B, k, d], which decoding by gathered rows would build.
    assert f"[{local},{k},{width}]" not in text and f"[{k},{local},{width}]" not in text


@pytest.mark.parametrize("auxk_coef", [0.0, 1 / 32])
@pytest.mark.parametrize("mesh", [slow((1, 1)), (1, 4)], ids=str)
def test_beyond_two_gradients_memory_does_not_grow_with_the_latents(mesh, auxk_coef):
    tokens, width, k, k_aux, block = 64, 24, 6, 10, 128
    grid, temporary = make_mesh(*mesh), []
    for latents in (16384, 65536):
        sae = SAEConfig(latents, k, select_memory=4e-9 * tokens * block)
        training = configs.training(tokens=100 * tokens, batch_size=tokens, auxk_coef=auxk_coef, k_aux=k_aux)
        program = make_program(sae, training, width)
        x = jax.ShapeDtypeStruct((tokens, width), jnp.float32, sharding=shardings(grid, TOKENS))
        with jax.set_mesh(grid):
            lowered = program.step.lower(program.abstract_state(grid), (x,), program.hyper)
        # With the scheduler that runs have: see conftest.py.
        compiled = lowered.compile({"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"})
        gradients = 2 * 4 * latents // mesh[1] * width
        temporary.append(compiled.memory_analysis().temp_size_in_bytes - gradients)
    # A few numbers for each latent (its bias, its row's norms, whether it is dead), but no third [n, d].
    assert temporary[1] - temporary[0] < 4 * 12 * (65536 - 16384) // mesh[1]
    assert temporary[0] < 4 * tokens * (8 * k * mesh[1] + 4 * block + 20 * width + 2 * auxk.ROWS) + 4 * 12 * 16384
