"""Batches of whole contexts: which ones, on any mesh, from any step."""

import jax.numpy as jnp
import numpy as np

from jaxsae.data.contexts import ContextBatches
from jaxsae.distributed.mesh import make_mesh


class Numbered:
    """Context number i holds i T, i T + 1, ...; its activations are these numbers and their negatives."""

    width, rows, shape, dtype = 2, 4, (4,), np.int32

    def __len__(self):
        return 24

    def host(self, start, stop):
        return np.arange(4 * start, 4 * stop, dtype=np.int32).reshape(-1, 4)

    def activations(self, host):
        return (jnp.stack([host, -host], -1).astype(jnp.float32),)


def test_batches_are_consecutive_contexts_on_every_mesh():
    for shape in ((1, 1), (4, 2), (8, 1)):
        batches = ContextBatches(Numbered(), 8, make_mesh(*shape))
        got = list(batches.iterate(2, 5))
        for number, batch in zip((2, 3, 4), got):
            np.testing.assert_array_equal(batch, np.arange(32 * number, 32 * number + 32).reshape(8, 4))


def test_the_sample_is_the_first_rows_or_all():
    batches = ContextBatches(Numbered(), 8, make_mesh(2, 2))
    np.testing.assert_array_equal(batches.sample(40)[:, 0], np.arange(40))
    assert len(batches.sample(10**6)) == 96
    np.testing.assert_array_equal(batches.sample(10**6)[:, 1], -np.arange(96))
