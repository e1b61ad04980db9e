"""What is evaluated: an autoencoder on a mesh, the language model around it, and held-out contexts.

b contexts of a batch, T tokens or rows of each, d width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from tqdm import tqdm

from jaxsae.data.activations import Source
from jaxsae.distributed.mesh import place
from jaxsae.evals import latents
from jaxsae.lm.model import LM
from jaxsae.sae.layout import TOKENS
from jaxsae.sae.select import EXACT, Selection
from jaxsae.sae.types import SAE

# Rows of a batch, on each part of the mesh's data axis.
ROWS = 4096


@dataclass(frozen=True)
class Batch:
    """Contexts on the mesh. Those that only fill up the last batch are False in the mask."""

    host: Any  # [b@data, *source.shape]
    mask: Any  # [b@data] bool
    size: int  # contexts that count, the first ones


@dataclass(frozen=True)
class Subject:
    """What every evaluation gets. All arrays lie on `mesh`; latents are split over its axis `latent`."""

    sae: SAE
    source: Source  # of held-out contexts
    mesh: jax.sharding.Mesh
    tokens: int  # how many are asked for
    raw: SAE | None = None  # the weights without EMA, if there are any
    lm: LM | None = None  # None if activations come from files
    hook: str | None = None
    selection: Selection = EXACT
    facts: dict = field(default_factory=dict)  # what is known of its training, among it mse_scale
    tokenizer: Callable | None = None  # () -> Tokenizer
    quiet: bool = False  # without progress bars

    @property
    def contexts(self) -> int:
        """Contexts that are read: as many as hold the tokens that are asked for, at least one, at most all."""
        return min(max(1, self.tokens // self.source.rows), len(self.source))

    @property
    def rows(self) -> int:
        """Tokens that are read."""
        return self.contexts * self.source.rows

    def batches(self, size: int | None = None, title: str = "evaluating") -> Iterator[Batch]:
        """The contexts in batches of `size`, each context once. All batches have one shape, which divides over the
        mesh; default: as many contexts as have at most about ROWS rows on each part of the data axis.
        """
        devices = self.mesh.size
        up = lambda contexts: -(-contexts // devices) * devices
        if size is None:
            most = up(max(1, ROWS * self.mesh.shape["data"] // self.source.rows))
            # Batches of like size, so that little is filled up.
            size = up(-(-self.contexts // -(-self.contexts // most)))
        size = min(size, self.contexts)
        starts = range(0, self.contexts, size)
        for start in tqdm(starts, title, unit="batch", disable=self.quiet, leave=False):
            yield contexts(self.source, start, min(start + size, self.contexts), up(size), self.mesh)

    def activations(self, batch: Batch):
        """The activations [b@data, T, d] of a batch."""
        return self.source.activations(batch.host)[0]


def contexts(source: Source, start: int, stop: int, length: int, mesh: jax.sharding.Mesh) -> Batch:
    """Contexts number `start` to `stop` of a source on the mesh, filled up to `length` with copies of the last one."""
    lies = partial(NamedSharding, mesh)

    def read(a: int, z: int) -> np.ndarray:
        a, z = start + a, start + z
        rows = source.host(min(a, stop - 1), max(min(z, stop), min(a, stop - 1) + 1))
        return np.concatenate([rows, np.repeat(rows[-1:], z - a - len(rows), axis=0)])

    host = place(read, (length, *source.shape), source.dtype, lies(TOKENS))
    mask = place(lambda a, z: np.arange(a, z) < stop - start, (length,), bool, lies(TOKENS))
    return Batch(host, mask, stop - start)


def by_tokens(function: Callable, x):
    """function(x [B@data, d]) -> results [B@data, ...], of contexts x [b, T, d]: results [b@data, T, ...]."""
    b, T, d = x.shape
    flat = lax.reshape(jax.reshard(x, TOKENS), (b * T, d), out_sharding=TOKENS)
    back = lambda a: lax.reshape(a, (b, T, *a.shape[1:]), out_sharding=TOKENS)
    return jax.tree.map(back, function(flat))


def reconstruct(sae: SAE, x, selection: Selection = EXACT):
    """The reconstruction [b@data, T, d] of contexts x [b, T, d]."""
    return by_tokens(lambda x: latents.reconstruct(sae, x, selection), x)
