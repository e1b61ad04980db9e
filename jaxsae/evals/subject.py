"""What is evaluated: an autoencoder on a mesh, the language model around it, and held-out contexts.

b contexts of a batch, T tokens or rows of each, d width. What training left out (padding, --skip-first, --skip-tokens)
an evaluation leaves as it was: there the activation stays, and counts in no metric of reconstruction.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from tqdm import tqdm

from jaxsae.data.activations import Source, kept_rows, unmarked
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
    """Contexts on the mesh. Those that only fill up the last batch are False in all masks."""

    host: Any  # [b@data, *source.shape], padding marked
    mask: Any  # [b@data] bool
    kept: Any  # [b@data, T] bool, the rows that the autoencoder reconstructs, and that count
    size: int  # contexts that count, the first ones


@dataclass(frozen=True)
class Subject:
    """What every evaluation gets. All arrays lie on `mesh`; latents are split over its axis `latent`."""

    sae: SAE
    source: Source  # of held-out contexts
    mesh: jax.sharding.Mesh
    tokens: int | None = None  # how many are asked for; all if None
    raw: SAE | None = None  # the weights without EMA, if there are any
    lm: LM | None = None  # None if activations come from files
    hook: str | tuple[str, ...] | None = None  # where reconstructions are put in; of a crosscoder several
    hook_in: str | None = None  # of a transcoder: where it reads
    selection: Selection = EXACT
    facts: dict = field(default_factory=dict)  # what is known of its training, among it mse_scale
    tokenizer: Callable | None = None  # () -> Tokenizer
    quiet: bool = False  # without progress bars

    @property
    def contexts(self) -> int:
        """Contexts that are read: as many as hold the tokens that are asked for, at least one, at most all."""
        if self.tokens is None:
            return len(self.source)
        # `count` is of all contexts together.
        wanted = self.tokens * len(self.source) // max(1, self.source.count)
        return min(max(1, wanted), len(self.source))

    @cached_property
    def rows(self) -> int:
        """Tokens that are kept of those contexts."""
        return kept_rows(self.source, self.contexts)

    @property
    def keeps_all(self) -> bool:
        """Whether the autoencoder is put in at every position."""
        return not self.source.masked and self.source.first == 0

    def batches(
        self, size: int | None = None, title: str = "evaluating", among: range | None = None
    ) -> Iterator[Batch]:
        """The contexts in batches of `size`, each context once; of those numbered `among` if it is given. All batches
        have one shape, which divides over the mesh; default: as many contexts as have at most about ROWS rows on each
        part of the data axis.
        """
        among = range(self.contexts) if among is None else among
        devices = self.mesh.size
        up = lambda contexts: -(-contexts // devices) * devices
        if size is None:
            most = up(max(1, ROWS * self.mesh.shape["data"] // self.source.rows))
            # Batches of like size, so that little is filled up.
            size = up(-(-len(among) // max(1, -(-len(among) // most))))
        size = max(1, min(size, len(among)))
        starts = range(among.start, among.stop, size)
        for start in tqdm(starts, title, unit="batch", disable=self.quiet, leave=False):
            yield contexts(self.source, start, min(start + size, among.stop), up(size), self.mesh)

    @property
    def kind(self) -> str:
        """What is evaluated: autoencoder, transcoder or crosscoder."""
        return "transcoder" if self.hook_in else "crosscoder" if self.sae.spec.sections > 1 else "autoencoder"

    def activations(self, batch: Batch):
        """The activations [b@data, T, d] of a batch, which are encoded."""
        return self.source.activations(batch.host)[0]

    def text(self, batch: Batch):
        """(token ids [b@data, T] without marks, which of them are no padding [b@data, T]); (None, None) of files."""
        return (None, None) if self.lm is None else _text(batch.host, batch.mask)


@jax.jit
def _text(tokens, mask):
    return unmarked(tokens), (tokens >= 0) & mask[:, None]


def contexts(source: Source, start: int, stop: int, length: int, mesh: jax.sharding.Mesh) -> Batch:
    """Contexts number `start` to `stop` of a source on the mesh, filled up to `length` with copies of the last one."""
    lies = partial(NamedSharding, mesh)

    def read(a: int, z: int) -> np.ndarray:
        a, z = start + a, start + z
        rows = source.host(min(a, stop - 1), max(min(z, stop), min(a, stop - 1) + 1))
        return np.concatenate([rows, np.repeat(rows[-1:], z - a - len(rows), axis=0)])

    host = place(read, (length, *source.shape), source.dtype, lies(TOKENS))
    mask = place(lambda a, z: np.arange(a, z) < stop - start, (length,), bool, lies(TOKENS))
    with jax.set_mesh(mesh):
        kept = source.kept(host) & mask[:, None]
    return Batch(host, mask, kept, stop - start)


def by_tokens(function: Callable, x):
    """function(x [B@data, d]) -> results [B@data, ...], of contexts x [b, T, d]: results [b@data, T, ...]."""
    return jax.tree.map(partial(in_contexts, contexts=len(x)), function(in_rows(x)))


def in_rows(a):
    """Contexts [b, T, ...] as their tokens [B@data, ...]."""
    return lax.reshape(jax.reshard(a, TOKENS), (a.shape[0] * a.shape[1], *a.shape[2:]), out_sharding=TOKENS)


def in_contexts(a, contexts: int):
    """Tokens [B@data, ...] as their `contexts` contexts [b@data, T, ...]."""
    return lax.reshape(a, (contexts, len(a) // contexts, *a.shape[1:]), out_sharding=TOKENS)


@jax.jit
def flat(x):
    """Contexts [b, T, ...] as tokens [B@data, ...]."""
    return lax.reshape(jax.reshard(x, TOKENS), (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=TOKENS)


@jax.jit
def at_positions(x, positions):
    """The tokens of contexts x [b, T, d] at one position of each [b] (0 for negative ones): [b@data, d]."""
    x = jax.reshard(x, TOKENS)
    here = jnp.arange(x.shape[1]) == jnp.maximum(positions, 0)[:, None]
    return jnp.where(here[..., None], x, 0).sum(1)


def reconstruct(sae: SAE, x, selection: Selection = EXACT, kept=None):
    """The reconstruction [b@data, T, d] of contexts x [b, T, d]; x itself at the tokens that are not `kept` [b, T]."""
    xhat = by_tokens(lambda x: latents.reconstruct(sae, x, selection), x)
    return xhat if kept is None else put_in(xhat, x, kept)


def put_in(xhat, x, kept):
    """xhat [b@data, T, d] at the tokens in `kept` [b, T], and x at the others."""
    xhat, x, kept = (jax.reshard(a, TOKENS) for a in (xhat, x, jnp.asarray(kept)))
    return jnp.where(kept[..., None], xhat, x)
