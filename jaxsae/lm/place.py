"""A language model from its files onto the devices of a mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxsae.errors import BadInput
from jaxsae.lm import late
from jaxsae.lm.model import LM


def on_mesh(lm: LM, mesh: jax.sharding.Mesh, dtype: str = "float32", shard: bool = False) -> LM:
    """`lm`, whose parameters are host arrays or maps of files, on `mesh`, its parameters of type `dtype`.

    They lie whole on every device; with `shard`, matrices are split over all devices, and each process reads from the
    files what its devices hold. Raises BadInput if no matrix can be split, or if float16 cannot hold a number.
    """
    leaves, tree = jax.tree.flatten(lm.params)
    shard = shard and mesh.size > 1
    split = tuple(split_axis(leaf.shape, leaf.strides, mesh.size) for leaf in leaves) if shard else None
    if shard and not any(axis is not None for axis in split):
        raise BadInput(
            f"--lm-shard: no matrix of {lm.folder} has an axis that divides over {mesh.size} devices: give --mesh with "
            "another number of devices"
        )
    placed = [
        _place(leaf, mesh, axis, jnp.dtype(dtype), lm) for leaf, axis in zip(leaves, split or [None] * len(leaves))
    ]
    return replace(lm, params=tree.unflatten(placed), split=split)


def split_axis(shape: tuple[int, ...], strides: tuple[int, ...], devices: int) -> int | None:
    """The axis along which an array is split over so many devices: of those that divide the one whose parts lie
    together in the file; None if there is none, and for vectors.
    """
    if len(shape) < 2:
        return None
    return max((i for i, size in enumerate(shape) if size % devices == 0), key=lambda i: strides[i], default=None)


def _place(leaf, mesh: jax.sharding.Mesh, axis: int | None, dtype, lm: LM) -> jax.Array:
    parts = {}

    def part(index):
        key = str(index)
        if key not in parts:
            # A copy: JAX may go on to use the memory that it is given, and a file may change.
            with np.errstate(over="ignore"):
                parts[key] = np.array(leaf[index], dtype)
            if dtype == np.float16 and not np.isfinite(parts[key]).all():
                raise BadInput(f"--lm-dtype float16 cannot hold the weights in {lm.folder}: give bfloat16 or float32")
        return parts[key]

    return jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, late.spec(axis)), part)
