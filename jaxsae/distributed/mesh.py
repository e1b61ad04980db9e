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
    """A mesh of data x latent devices. Raises BadInput if there are not so many, or if a process has none."""
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
        # With several processes, device_put would gather all of their copies to compare them.
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


def mesh_shape(devices: int, memory: float | None, n: int, d: int, batch: int) -> tuple[int, int]:
    """(data, latent) for so many devices with `memory` bytes each, None if that is unknown.

    The batch divides over `data` and n over `latent`. As many devices as can be used, and of these as few on `latent`
    as leave half the memory to everything but the state; all on `latent` if even that is too little.
    """
    # Two matrices, each as parameter, two Adam moments, EMA and gradient.
    state = 2 * 4 * n * d * 5
    latents = [count for count in range(1, devices + 1) if n % count == 0]
    shapes = [(a, b) for b in latents for a in range(1, devices // b + 1) if batch % a == 0]
    roomy = [shape for shape in shapes if not memory or state / shape[1] <= memory / 2]
    if not roomy:
        return max(shapes, key=lambda shape: (shape[1], shape[0]))
    return max(roomy, key=lambda shape: (shape[0] * shape[1], -shape[1]))
