"""Devices: the mesh, and host data placed on it.

The mesh has two axes, `data` (tokens are split over it) and `latent` (latents are). Axes are Explicit, JAX's default:
`jax.typeof` shows how every array lies, and code that would gather one silently does not compile.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsae.errors import BadInput


def make_mesh(data: int, latent: int) -> jax.sharding.Mesh:
    """A mesh of data x latent devices. Raises BadInput where there are not so many, or where a process has none."""
    devices = jax.devices()
    if data < 1 or latent < 1 or data * latent > len(devices):
        raise BadInput(
            f"--mesh {data} {latent} asks for {data * latent} devices: here are {len(devices)}, "
            f"so give two positive numbers with a product of at most {len(devices)}"
        )
    mesh = jax.make_mesh((data, latent), ("data", "latent"), devices=devices[: data * latent])
    if missing := sorted({d.process_index for d in devices} - {d.process_index for d in mesh.devices.flat}):
        raise BadInput(
            f"a mesh of {data} x {latent} leaves process {', '.join(map(str, missing))} without a device: give --mesh "
            f"with a product of {len(devices)} and a --batch-size that divides, or start fewer processes"
        )
    return mesh


def shardings(mesh: jax.sharding.Mesh, specs):
    """A pytree of PartitionSpecs as NamedShardings on `mesh`."""
    leaf = lambda x: isinstance(x, PartitionSpec)
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=leaf)


def replicate(tree, mesh: jax.sharding.Mesh):
    """A pytree of host or local arrays on every device of `mesh`; every process brings the same."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def copy(a):
        # device_put would, where there are several processes, gather all of their copies to compare them.
        host = np.asarray(a)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(copy, tree)


def place(read: Callable[[int, int], np.ndarray], shape: tuple[int, ...], dtype, sharding: NamedSharding) -> jax.Array:
    """A global array of `shape` whose rows a to b are read(a, b); each process reads only what its devices hold."""
    parts = {}

    def part(index):
        start, stop, _ = index[0].indices(shape[0])
        if (start, stop) not in parts:
            parts[start, stop] = np.asarray(read(start, stop), dtype)
        return parts[start, stop]

    return jax.make_array_from_callback(shape, sharding, part)


def on_contexts(function: Callable, lm, *trees):
    """function(lm, *trees), where every array has a leading axis of contexts, [b@data, ...].

    What a language model makes of one context does not need another: each device runs `function` on some of them, split
    over all devices where they divide. Results [b, ...] stay where they were made: over `data`, or over both axes.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    contexts = len(jax.tree.leaves(trees)[0])
    everywhere = contexts % (shape["data"] * shape["latent"]) == 0
    split = PartitionSpec(("data", "latent") if everywhere else "data")
    trees = jax.tree.map(lambda a: jax.reshard(a, split), trees)
    specs = PartitionSpec(), *(split for _ in trees)
    return jax.shard_map(function, in_specs=specs, out_specs=split)(lm, *trees)
