"""Some float64 steps, local and end to end, and a checkpoint; as a program, one of the processes of such a run."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.data.activations import ActivationBatches, BufferPlan
from jaxsae.data.contexts import ContextBatches
from jaxsae.distributed import processes
from jaxsae.distributed.mesh import make_mesh, replicate
from jaxsae.lm.gpt2 import GPT2, GPT2Config
from jaxsae.lm.model import LM, prefix
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.config import SAEConfig
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.program import make_program
from tests import configs

d, STEPS = 16, 12
SAE_CONFIG = SAEConfig(n=64, k=4)
HOOK = "blocks.1.hook_resid_pre"
# Latents die soon, so that AuxK takes part.
TRAINING = configs.training(tokens=STEPS * 128, batch_size=128, dead_after=300, lr=1e-2, k_aux=8)


class Rows:
    """Random float64 activations with some structure, each a pure function of its number."""

    width, rows, shape, dtype = d, 1, (1, d), np.float64
    first, masked, count = 0, False, 1024

    def __len__(self):
        return 1024

    def host(self, start, stop):
        mix = np.random.default_rng(7).normal(size=(6, d))
        row = lambda i: np.random.default_rng(i % 1024).exponential(size=(1, 6)) @ mix
        return np.stack([row(i) for i in range(start, stop)])

    def activations(self, host):
        return (host,)


def run(mesh: jax.sharding.Mesh):
    """(the state after STEPS steps on `mesh`, their losses)."""
    batches = ActivationBatches(Rows(), BufferPlan.of(128, 1, mesh.shape["data"], 4), mesh, seed=0)
    program = make_program(SAE_CONFIG, TRAINING, d)
    state, losses = program.first_state(batches, mesh), []
    for number in range(STEPS // 4):
        (chunk,) = batches.chunk(number)
        for i in range(4):
            with jax.set_mesh(mesh):
                state, metrics = program.step(state, (chunk[i],), program.hyper)
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
        return (self.run(self.lm, host),)


def run_end_to_end(mesh: jax.sharding.Mesh):
    """The losses of a few steps through a language model of random weights."""
    model = GPT2Config(50, 8, d, 2, 2, 64)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(lambda key: GPT2(model).init(key, ids)["params"])(jax.random.key(0))
    lm = replicate(LM(jax.tree.map(lambda a: np.asarray(a, np.float64), jax.device_get(params)), model), mesh)
    training = configs.training(objective="e2e_downstream", tokens=5 * 128, batch_size=128, micro_batches=2, lr=1e-2)
    program, batches = make_program(SAE_CONFIG, training, d, model, HOOK), ContextBatches(Contexts(lm), 16, mesh)
    state, losses = program.first_state(batches, mesh), []
    for batch in batches.iterate(0, 5):
        with jax.set_mesh(mesh):
            state, metrics = program.step(state, batch, program.hyper, lm)
        losses.append([float(metrics[name]) for name in ("loss", "kl", "grad_norm")])
    return losses


def like(mesh):
    """What `run` returns, without numbers."""
    double = lambda a: jax.ShapeDtypeStruct(
        a.shape, jnp.float64 if a.dtype == jnp.float32 else a.dtype, sharding=a.sharding
    )
    return jax.tree.map(double, make_program(SAE_CONFIG, TRAINING, d).abstract_state(mesh))


if __name__ == "__main__":
    coordinator, count, number, folder = sys.argv[1:]
    processes.start(processes.DistributedConfig(True, coordinator, int(count), int(number)))
    state, losses = run(make_mesh(8, 1))
    end_to_end = run_end_to_end(make_mesh(4, 2))
    with Checkpoints(Path(folder), 2) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
    if processes.is_primary():
        print(json.dumps({"dtype": str(state.params.W_enc.dtype), "losses": losses, "end_to_end": end_to_end}))
    processes.end(0)
