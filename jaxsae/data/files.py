"""Activations straight from files, of any model: .npy, .safetensors and others (data/arrays/), [rows, d] or [b, T, d].

Rows are read in blocks of neighbours, which take the place of a language model's contexts: whole contexts if the files
have some, else 64 rows. Blocks come in a shuffled order, and a chunk's rows are permuted.

Of a transcoder, what should come out of each row stands beside it until both are on the devices.

A row that is left out, or that is missing because a block is short, is marked in band: it is a row of NaN.
"""

from collections.abc import Sequence
from functools import cached_property

import jax.numpy as jnp
import numpy as np

from jaxsae.data.arrays.opened import ROWS, Files, blocks_of
from jaxsae.errors import BadInput

# Rows whose marks are counted at once.
COUNTED = 1 << 24


class FileSource:
    """Blocks of rows of activation files, host data float32 [rows, d], of a transcoder [rows, d + d_out]; see Source.

    Rows of NaN do not count.
    """

    dtype = np.float32

    def __init__(self, files: Files, split: str, seed: int | None, skip: Sequence[int] = (), skip_first: bool = False):
        """`split` is train, held_out or all; `seed` None keeps the order of the files. `skip` are ids of tokens whose
        rows are left out, `skip_first` leaves out position 0 of each context.

        Raises BadInput if the split is empty, or if `skip` or `skip_first` asks for what the files do not say.
        """
        import grain

        self.files, self.skip, self.first = files, tuple(skip), int(skip_first)
        self.width, self.rows = files.width, files.rows
        self.shape, self.fingerprint = (self.rows, self.width + (files.width_out or 0)), files.fingerprint
        _check_skips(files, self.skip, skip_first)
        blocks = np.array([blocks_of(shard) for shard in files.shards])
        held = np.array(files.held)
        self._first = blocks - held if split == "held_out" else np.zeros_like(blocks)
        last = blocks - held if split == "train" else blocks
        # Block number i of the split lies in the shard with ends[shard] <= i < ends[shard + 1].
        self._ends = np.cumsum([0, *(last - self._first)])
        if not len(self):
            raise BadInput(
                f"{files.where} holds {sum(shard.rows for shard in files.shards)} rows, and its {split} part is empty: "
                f"give at least two blocks of {self.rows} rows, or a folder --held-out"
            )
        order = grain.MapDataset.range(len(self))
        self.order = order if seed is None else order.seed(seed).shuffle().repeat()

    def __len__(self):
        return int(self._ends[-1])

    @property
    def order_name(self) -> str:
        return f"all {len(self)} blocks"

    @cached_property
    def count(self) -> int:
        """Rows that count, of all blocks once."""
        count = 0
        for shard in range(len(self.files.shards)):
            start, stop = self._range(shard)
            for part in range(start, stop, COUNTED):
                count += self._count(shard, part, min(part + COUNTED, stop))
        return count

    @cached_property
    def masked(self) -> bool:
        """Whether some rows do not count, those before `first` aside."""
        return self.count < len(self) * (self.rows - self.first)

    def host(self, start, stop):
        return np.stack([self._block(int(self.order[i])) for i in range(start, stop)])

    def kept(self, host):
        """Which rows count, bool [c, rows]."""
        return ~jnp.isnan(host[..., 0]) & (jnp.arange(self.rows) >= self.first)

    def activations(self, host):
        activations = jnp.where(jnp.isnan(host), 0, host)
        if self.files.width_out is None:
            return (activations,)
        return activations[..., : self.width], activations[..., self.width :]

    def _block(self, number: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, number, "right")) - 1
        step = self.files.shards[shard].context or ROWS
        start = step * int(self._first[shard] + number - self._ends[shard])
        rows = self.files.shards[shard].read(start, min(start + step, self.files.shards[shard].rows))
        out = self.files.left_out(shard, start, start + len(rows), self.skip)
        block = np.full(self.shape, np.nan, np.float32)
        block[: len(rows)] = np.where(out[:, None], np.nan, rows)
        return block

    def _range(self, shard: int) -> tuple[int, int]:
        """The rows of a shard that are of the split."""
        step, rows = self.files.shards[shard].context or ROWS, self.files.shards[shard].rows
        first, blocks = int(self._first[shard]), int(self._ends[shard + 1] - self._ends[shard])
        return min(first * step, rows), min((first + blocks) * step, rows)

    def _count(self, shard: int, start: int, stop: int) -> int:
        out = self.files.left_out(shard, start, stop, self.skip)
        if self.first:
            out |= np.arange(start, stop) % self.files.shards[shard].context < self.first
        return stop - start - int(np.count_nonzero(out))


def _check_skips(files: Files, skip: tuple[int, ...], skip_first: bool):
    if skip and any(shard.tokens is None for shard in files.shards):
        raise BadInput(
            f"{files.where} does not say which tokens its rows are of, so none can be left out: give token ids beside "
            "the activations as tokens.npy or as an array `tokens` in each shard, or leave out --skip-tokens"
        )
    if skip_first and files.shards[0].context is None:
        raise BadInput(
            f"{files.where} holds rows without positions, so position 0 cannot be left out: give arrays [b, T, d], or "
            "token ids [b, T] beside the activations, or --no-skip-first"
        )
