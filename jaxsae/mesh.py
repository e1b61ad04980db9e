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
    """A mesh of data x latent devices. Raises BadInput where there are not so many."""
    devices = jax.devices()
    if data < 1 or latent < 1 or data * latent > len(devices):
        raise BadInput(
            f"--mesh {data} {latent} asks for {data * latent} devices: here are {len(devices)}, "
            f"so give two positive numbers with a product of at most {len(devices)}"
        )
    return jax.make_mesh((data, latent), ("data", "latent"), devices=devices[: data * latent])


def shardings(mesh: jax.sharding.Mesh, specs):
    """A pytree of PartitionSpecs as NamedShardings on `mesh`."""
    leaf = lambda x: isinstance(x, PartitionSpec)
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=leaf)


def place(read: Callable[[int, int], np.ndarray], shape: tuple[int, ...], dtype, sharding: NamedSharding) -> jax.Array:
    """A global array of `shape` whose rows a to b are read(a, b); each process reads only what its devices hold."""
    parts = {}

    def part(index):
        start, stop, _ = index[0].indices(shape[0])
        if (start, stop) not in parts:
            parts[start, stop] = np.asarray(read(start, stop), dtype)
        return parts[start, stop]

    return jax.make_array_from_callback(shape, sharding, part)
