"""Some float64 steps, local and end to end, and a checkpoint; as a program, one of the processes of such a run."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import processes
from jaxsae.data.activations import Batches, Plan
from jaxsae.data.sequences import Sequences
from jaxsae.lm.gpt2 import GPT2, GPT2Config
from jaxsae.lm.model import LM, prefix
from jaxsae.mesh import make_mesh, on_contexts, replicate
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.objectives import make_objective
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.start import abstract_state, first_state
from jaxsae.training.step import hyper, make_step

d, STEPS = 16, 12
SAE_CONFIG = SAEConfig(n=64, k=4)
HOOK = "blocks.1.hook_resid_pre"
# Latents die soon, so that AuxK takes part.
TRAINING = TrainingConfig(tokens=STEPS * 128, batch_size=128, dead_after=300, lr=1e-2, k_aux=8)


class Rows:
    """Random float64 activations with some structure, each a pure function of its number."""

    width, rows, shape, dtype = d, 1, (1, d), np.float64

    def __len__(self):
        return 1024

    def host(self, start, stop):
        mix = np.random.default_rng(7).normal(size=(6, d))
        row = lambda i: np.random.default_rng(i % 1024).exponential(size=(1, 6)) @ mix
        return np.stack([row(i) for i in range(start, stop)])

    def activations(self, host):
        return host


def run(mesh: jax.sharding.Mesh):
    """(the state after STEPS steps on `mesh`, their losses)."""
    batches = Batches(Rows(), Plan.of(128, 1, mesh.shape["data"], 4), mesh, seed=0)
    step = jax.jit(make_step(SAE_CONFIG, TRAINING, make_optimizer("unit_norm"), TRAINING.k_aux))
    state, losses = first_state(batches, mesh, SAE_CONFIG, TRAINING), []
    for number in range(STEPS // 4):
        chunk = batches.chunk(number)
        for i in range(4):
            with jax.set_mesh(mesh):
                state, metrics = step(state, chunk[i], hyper(SAE_CONFIG, TRAINING))
            losses.append([float(metrics[name]) for name in ("loss", "auxk", "grad_norm", "dead_fraction")])
    return state, losses


class Contexts:
    """Random token ids in contexts of 8, each a pure function of its number; activations are those of the model."""

    width, rows, shape, dtype = d, 8, (8,), np.int32

    def __init__(self, lm):
        self.lm, self.run = lm, jax.jit(lambda lm, ids: on_contexts(lambda *args: prefix(*args, HOOK), lm, ids))

    def __len__(self):
        return 256

    def host(self, start, stop):
        return np.stack([np.random.default_rng(i).integers(0, 50, 8, np.int32) for i in range(start, stop)])

    def activations(self, host):
        return self.run(self.lm, host)


def run_end_to_end(mesh: jax.sharding.Mesh):
    """The losses of a few steps through a language model of random weights."""
    model = GPT2Config(50, 8, d, 2, 2, 64)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(lambda key: GPT2(model).init(key, ids)["params"])(jax.random.key(0))
    lm = replicate(LM(jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(params)), model), mesh)
    training = TrainingConfig(objective="e2e_downstream", tokens=5 * 128, batch_size=128, micro_batches=2, lr=1e-2)
    objective, batches = make_objective(SAE_CONFIG, training, model, HOOK), Sequences(Contexts(lm), 16, mesh)
    step = jax.jit(make_step(SAE_CONFIG, training, make_optimizer("unit_norm"), 8, objective))
    state, losses = first_state(batches, mesh, SAE_CONFIG, training), []
    for batch in batches.stream(0, 5):
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch, hyper(SAE_CONFIG, training), lm)
        losses.append([float(metrics[name]) for name in ("loss", "kl", "grad_norm")])
    return losses


def like(mesh):
    """What `run` returns, without numbers."""
    double = lambda a: jax.ShapeDtypeStruct(
        a.shape, jnp.float64 if a.dtype == jnp.float32 else a.dtype, sharding=a.sharding
    )
    return jax.tree.map(double, abstract_state(d, mesh, SAE_CONFIG, TRAINING))


if __name__ == "__main__":
    coordinator, count, number, folder = sys.argv[1:]
    processes.start(processes.DistributedConfig(True, coordinator, int(count), int(number)))
    state, losses = run(make_mesh(8, 1))
    end_to_end = run_end_to_end(make_mesh(4, 2))
    with Checkpoints(Path(folder), 2) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
    if processes.is_first():
        print(json.dumps({"dtype": str(state.params.W_enc.dtype), "losses": losses, "end_to_end": end_to_end}))
    processes.end(0)
