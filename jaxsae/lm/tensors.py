"""From the tensors of Hugging Face's files to the nested parameters of a family, by a table of what there must be.

A table is {name of the tensor: (path of the parameter, shape in the file)}. The matrix of a dense layer lies [out, in]
in files and [in, out] here, where its path ends in `kernel`.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm import hf as files

Table = Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]]

# What older files hold beside weights: causal masks, and the frequencies of rotary embeddings.
BUFFERS = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")


def norm(name: str, path: tuple[str, ...], width: int, leaves: Mapping[str, str]) -> dict:
    """The rows of a table for a norm's arrays [width], {what the file calls it: what it is called here}."""
    return {f"{name}.{theirs}": ((*path, ours), (width,)) for theirs, ours in leaves.items()}


def dense(name: str, path: tuple[str, ...], width: int, out: int, bias: bool) -> dict:
    """The rows of a table for a dense layer from `width` to `out` channels."""
    rows = {f"{name}.weight": ((*path, "kernel"), (out, width))}
    return rows | ({f"{name}.bias": ((*path, "bias"), (out,))} if bias else {})


def shapes(table: Table) -> dict:
    """The parameters, with a jax.ShapeDtypeStruct in the place of each array."""
    turned = {name: jax.ShapeDtypeStruct(_turned(path, shape), jnp.float32) for name, (path, shape) in table.items()}
    return files.nested(turned, {name: path for name, (path, _) in table.items()}, "the table")


def read(tensors: Mapping[str, np.ndarray], table: Table, shown) -> dict:
    """The parameters. Raises BadInput for a tensor that is absent, of another shape, or not in the table."""
    for name, (_, shape) in table.items():
        if (have := files.named(tensors, name, shown).shape) != shape:
            raise BadInput(f"{shown} has weights {name} of shape {list(have)}, but its config.json says {list(shape)}")
    for name in tensors.keys() - table.keys():
        if not name.endswith(BUFFERS):
            raise BadInput(f"{shown} has weights {name}, of which its config.json says nothing")
    params = {name: tensors[name].T if path[-1] == "kernel" else tensors[name] for name, (path, _) in table.items()}
    return files.nested(params, {name: path for name, (path, _) in table.items()}, shown)


def without_tied_head(tensors: Mapping[str, np.ndarray], head: str, embedding: str, shown) -> dict[str, np.ndarray]:
    """The tensors of a model whose unembedding is its embedding, less the copy that some files have as `head`.

    Raises BadInput if it is not a copy.
    """
    tensors = dict(tensors)
    copy = tensors.pop(head, None)
    if copy is not None and not np.array_equal(copy, files.named(tensors, embedding, shown)):
        raise BadInput(
            f"{shown} has a {head} that is not its {embedding}, but its config.json says that they are tied: say there "
            f"whether they are, by tie_word_embeddings false, or remove {head}"
        )
    return tensors


def _turned(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path[-1] == "kernel" else shape
