"""Autoencoders that share a compiled step end as each would alone, in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.distributed.mesh import make_mesh, shardings
from jaxsae.sae.layout import TOKENS
from jaxsae.training.program import make_program
from jaxsae.training.stacked import Site, make_programs
from tests import configs
from tests.marks import slow

B, d, n, STEPS = 32, 12, 64, 5


def training(**values):
    """Latents that are idle for two steps are dead."""
    common = {"tokens": B * STEPS, "batch_size": B, "k_aux": 8, "dead_after": 2 * B, "ema": 0.9}
    return configs.training(**common | values)


# After the fourth step.
RESAMPLED = {"resample_every": 4 * B, "max_resamples": 1}


# What differs within a stack, by activation function.
STACKS = {
    "topk": (
        (configs.sae(n, 3), training(seed=1, lr=0.02, **RESAMPLED)),
        (configs.sae(n, 5), training(seed=2, lr=0.01, auxk_coef=0.5, dead_after=B, **RESAMPLED)),
    ),
    "batch_topk": (
        (configs.sae(n, 2, activation="batch_topk"), training(seed=1, lr=0.02)),
        (configs.sae(n, 3, activation="batch_topk"), training(seed=2, lr=0.01, auxk_coef=0.5, dead_after=B)),
    ),
    "jumprelu": (
        (configs.sae(n, activation="jumprelu", bandwidth=0.1), training(sparsity=1.0, lr=0.02)),
        (configs.sae(n, activation="jumprelu", bandwidth=0.1), training(sparsity=3.0, lr=0.01, seed=4)),
    ),
}


class Rows:
    """Batches with directions that many rows share, some more than others, so that latents die and thresholds move."""

    def __init__(self, mesh):
        rng = np.random.default_rng(0)
        strength = rng.exponential(size=(STEPS * B, 6)) ** 3
        self.rows = strength @ rng.normal(size=(6, d)) + 0.1 * rng.normal(size=(STEPS * B, d))
        self.sharding = shardings(mesh, TOKENS)

    def sample(self, rows):
        return jnp.asarray(self.rows[:rows])

    def batch(self, number):
        return (jax.device_put(self.rows[(number - 1) * B : number * B], self.sharding),)


def run(program, mesh):
    """The last state on the host, and the metrics of all steps."""
    batches, history = Rows(mesh), []
    state = program.first_state(batches, mesh)
    with jax.set_mesh(mesh):
        for number in range(1, STEPS + 1):
            state, metrics = program.train_step(state, batches.batch(number), number)
            history.append(jax.device_get(metrics))
    return jax.device_get(replace(state, key=jax.random.key_data(state.key))), history


@pytest.mark.parametrize(
    "name, mesh",
    [("topk", (2, 4)), ("batch_topk", (2, 4)), ("jumprelu", (1, 1))]
    + [slow("topk", (1, 1)), slow("batch_topk", (1, 1)), slow("jumprelu", (2, 4))],
    ids=str,
)
def test_each_ends_as_alone(x64, name, mesh):
    members, mesh = STACKS[name], make_mesh(*mesh)
    programs = make_programs([Site(sae, training, d) for sae, training in members])
    dead = []
    for program, (sae, training) in zip(programs, members, strict=True):
        got, metrics = run(program, mesh)
        want, alone = run(make_program(sae, training, d), mesh)
        assert got.params.spec == sae.spec()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), got, want)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), metrics, alone)
        dead.append(max(row["auxk"] for row in alone))
    if name != "jumprelu":
        assert min(dead) > 0, "the example must have dead latents in every member"


def test_what_is_compiled_is_shared():
    topk = make_programs([Site(sae, training, d) for sae, training in STACKS["topk"]])
    same_k = make_programs([Site(configs.sae(n, 3), training(seed=s), d, f"hook {s}") for s in (1, 2)])
    other = make_programs([Site(configs.sae(n, 3), training(), d), Site(configs.sae(2 * n, 3), training(), d)])
    # Each knows its own k, so what differs is around the compiled step.
    assert topk[1].step is not topk[0].step and topk[0].hyper.k == 3 and topk[1].hyper.k == 5
    assert same_k[0].step is same_k[1].step and same_k[0].init is same_k[1].init and same_k[0].hyper.k is None
    assert [program.seed for program in same_k] == [1, 2]
    assert other[0].step is not other[1].step
    # Multi-TopK makes two numbers of k.
    views = [Site(configs.sae(n, k, activation="multi_topk"), training(), d) for k in (2, 3)]
    assert all(program.hyper.k is None for program in make_programs(views))
