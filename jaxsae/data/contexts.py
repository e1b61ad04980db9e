"""Whole contexts to train on, as a pure function of the step. b contexts of a batch, T tokens each, R rows, d width.

Batch s is contexts s b to (s + 1) b of the shuffled order.
End-to-end objectives run the language model after the autoencoder, so a batch keeps its contexts whole.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.data.activations import Source
from jaxsae.distributed.mesh import place


class ContextBatches:
    """Batches [b@data, T] of a source's host data, by step."""

    def __init__(self, source: Source, contexts: int, mesh: jax.sharding.Mesh):
        """`contexts`: b, of each batch; divides over the mesh's data axis."""
        self.source, self.contexts, self.mesh = source, contexts, mesh

    def batch(self, number: int) -> jax.Array:
        c, source = self.contexts, self.source
        read = lambda start, stop: source.host(number * c + start, number * c + stop)
        return place(read, (c, *source.shape), source.dtype, NamedSharding(self.mesh, P("data")))

    def sample(self, rows: int) -> jax.Array:
        """Activations [R, d] of the first contexts, on every device: `rows` of them, or all that there are."""
        return self.samples(rows)[0]

    def samples(self, rows: int) -> tuple[jax.Array, ...]:
        """As `sample`, of each array that the source gives."""
        rows = min(rows, len(self.source) * self.source.rows)
        batches = range(max(1, -(-rows // (self.contexts * self.source.rows))))
        take = jax.jit(lambda x: jax.reshard(x, P()).reshape(-1, x.shape[-1]))
        with jax.set_mesh(self.mesh):
            parts = [tuple(map(take, self.source.activations(self.batch(number)))) for number in batches]
            return tuple(jnp.concatenate(arrays)[:rows] for arrays in zip(*parts))

    def iterate(self, start: int, stop: int) -> Iterator[jax.Array]:
        """Batches number `start` to `stop`; each is read while the one before it is used."""
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.batch, start)
            for number in range(start, stop):
                batch = ahead.result()
                if number + 1 < stop:
                    ahead = reader.submit(self.batch, number + 1)
                yield batch
