"""jaxsae's activations of a language model at a hook point, as training reads them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.peers.protocol import Built
from jaxsae.data.activations import TextSource
from jaxsae.distributed.mesh import make_mesh
from jaxsae.lm.place import on_mesh
from jaxsae.lm.weights import open_model

PACKAGES = ("jaxsae", "jax")


def build(settings: dict) -> Built:
    mesh = make_mesh(1, 1)
    lm = on_mesh(open_model(settings["folder"]), mesh)
    context = settings["context"]
    source = TextSource(lm, settings["hook"], SimpleNamespace(padded=False), context, False, "")
    tokens = np.arange(settings["tokens"], dtype=np.int32) * 7919 % lm.config.vocab_size
    tokens = jax.device_put(tokens.reshape(-1, context), NamedSharding(mesh, P("data")))

    def step() -> float:
        with jax.set_mesh(mesh):
            (x,) = source.activations(tokens)
            return float(jnp.mean(x**2))

    return Built(step, jax.devices()[0].device_kind)
