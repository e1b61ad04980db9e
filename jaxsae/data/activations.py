"""Activations to train on, as a pure function of the step. T rows of a context, d width, B rows of a batch.

Some places of a context may be left out: padding, which a source marks in its data (token -1, a row of NaN), and what a
policy names (`--skip-first`, `--skip-tokens`). Batches hold B rows that count, always.

A chunk is a number of contexts' activations, enough for some batches, computed at once. Its contexts are split into
lanes; each lane permutes its rows and gives an equal part of every batch. Rows so mix within and across contexts, no
row moves between devices (lanes are split over the `data` axis), and the batches do not depend on the mesh.
The only state is the step: batch s comes from chunk s // batches, whose contexts come from a shuffle by index.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.distributed.mesh import place
from jaxsae.distributed.processes import one_by_one
from jaxsae.errors import BadInput
from jaxsae.lm.architecture import width
from jaxsae.lm.model import LM, prefixes
from jaxsae.lm.parallel import on_contexts
from jaxsae.precision import as_here

LANES = 64
# Tokens that the language model reads at once, by platform: on a CPU its activations should stay in the caches.
TOKENS_AT_ONCE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
# Rows that the share of those that count is measured on: of all rows if there are no more.
COUNTED = 1 << 18


class Source(Protocol):
    """Where contexts of activations come from: a language model that reads tokens, or files."""

    width: int  # d
    rows: int  # rows of one context
    first: int  # rows before this one count in no context
    masked: bool  # whether others may not count either; if not, `kept` need not be asked
    count: int  # rows that count before the order repeats; may be estimated from the first COUNTED ones
    shape: tuple[int, ...]  # host data of one context
    dtype: Any  # of the host data
    fingerprint: str  # changes with the data
    order_name: str  # what the order of contexts depends on, beside the data and the seed

    def __len__(self) -> int:
        """Contexts before the order repeats."""

    def host(self, start: int, stop: int) -> np.ndarray:
        """Host data of contexts number start to stop of the endless shuffled order, [stop - start, *shape].

        A place that holds nothing is marked: token id -1, or a row of NaN.
        """

    def kept(self, host: jax.Array) -> jax.Array:
        """Which rows count in training and in metrics, bool [c@data, rows], from host data on devices [c@data, *shape].

        The host data of a text may be tokens of any number of positions.
        """

    def activations(self, host: jax.Array) -> tuple[jax.Array, ...]:
        """Host data on devices [c@data, *shape] -> activations [c@data, rows, d]: (x,), or (x, y) if what should come
        out of the autoencoder is not what goes in. Rows that are not kept hold finite numbers too.
        """


@dataclass(frozen=True)
class BufferPlan:
    """How chunks, lanes and batches divide."""

    batch: int  # rows of a batch
    rows: float  # rows of a context that count, on average
    lanes: int
    batches: int  # batches of a chunk
    contexts: int  # contexts of a chunk

    @classmethod
    def of(cls, batch: int, rows: float, data_axis: int, batches: int) -> "BufferPlan":
        """Raises BadInput if a batch cannot be split over `data_axis` devices."""
        if batch % data_axis:
            raise BadInput(
                f"--batch-size {batch} does not divide over the {data_axis} devices of the mesh's data axis: "
                f"give a multiple of {data_axis}"
            )
        # As many lanes as the mesh needs, and the same number on every mesh that divides LANES.
        lanes = math.gcd(batch, LANES) if math.gcd(batch, LANES) % data_axis == 0 else data_axis
        per_lane = int(-(-batches * batch // (rows * lanes)))
        return cls(batch, rows, lanes, batches, per_lane * lanes)


class ActivationBatches:
    """Batches [B@data, d] of activations in the units of their source, by step."""

    def __init__(self, source: Source, plan: BufferPlan, mesh: jax.sharding.Mesh, seed: int):
        self.source, self.plan, self.mesh = source, plan, mesh
        self.key = jax.random.key(seed)
        self._first: tuple[jax.Array, ...] | None = None

    def _place(self, number: int) -> jax.Array:
        c, source = self.plan.contexts, self.source
        read = lambda start, stop: source.host(number * c + start, number * c + stop)
        return place(read, (c, *source.shape), source.dtype, NamedSharding(self.mesh, P("data")))

    def _shuffled(self, number: int, host: jax.Array) -> tuple[jax.Array, ...]:
        source, key = self.source, jax.random.fold_in(self.key, number)
        with jax.set_mesh(self.mesh):
            kept = source.kept(host) if source.masked else None
            return one_by_one(_shuffle(source.activations(host), kept, key, self.plan, source.first))

    def chunk(self, number: int) -> tuple[jax.Array, ...]:
        """The batches of chunk `number`, [batches, B@data, d] each."""
        return self._shuffled(number, self._place(number))

    def sample(self, rows: int) -> jax.Array:
        """The first `rows` rows x of the batches [R, d], on every device, or as many as there are.

        The first chunk is kept until `iterate` asks for it.
        """
        return self.samples(rows)[0]

    def samples(self, rows: int) -> tuple[jax.Array, ...]:
        """As `sample`, of each array of the batches."""
        rows = min(rows, self.source.count)

        @jax.jit
        def take(chunk):
            some = min(len(chunk), -(-rows // chunk.shape[1]))
            return jax.reshard(chunk[:some], P()).reshape(-1, chunk.shape[-1])[:rows]

        with jax.set_mesh(self.mesh):
            self._first = self.chunk(0)
            rest = range(1, max(1, -(-rows // (self.plan.batches * self.plan.batch))))
            take_all = lambda chunk: one_by_one([take(x) for x in chunk])
            parts = [take_all(self._first), *(take_all(self.chunk(number)) for number in rest)]
            return tuple(jnp.concatenate(arrays)[:rows] for arrays in zip(*parts))

    def iterate(self, start: int, stop: int) -> Iterator[tuple[jax.Array, ...]]:
        """Batches number `start` to `stop`; the next chunk's host data are read while this chunk is used.

        On a single CPU device all of the next chunk is computed meanwhile, at the price of its memory: XLA runs there
        side by side what two threads start, and so uses the cores that a training step leaves idle.
        """
        per, last = self.plan.batches, -(-stop // self.plan.batches)
        whole = self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"
        chunk, self._first = self._first if start < per else None, None
        with ThreadPoolExecutor(1) as reader:
            read = partial(reader.submit, as_here(self.chunk if whole else self._place))
            ahead = read(start // per) if chunk is None else None
            for number in range(start // per, last):
                if ahead is not None:
                    if not whole:
                        chunk = None  # the old chunk is freed before the new one is made
                    chunk = ahead.result() if whole else self._shuffled(number, ahead.result())
                ahead = read(number + 1) if number + 1 < last else None
                for step in range(max(start, number * per), min(stop, (number + 1) * per)):
                    with jax.set_mesh(self.mesh):
                        batch = _batch(chunk, step - number * per)
                    yield batch


@partial(jax.jit, static_argnames=("plan", "first"))
def _shuffle(arrays, kept, key, plan: BufferPlan, first: int):
    """[c@data, rows, d] each -> [batches, B@data, d]: each lane's rows permuted and dealt out to the batches.

    Rows before `first`, and those that are False in `kept` [c@data, rows] (None: none), are left out. A lane with fewer
    rows than the batches need from it gives them again; one without any gives the first row of another.
    """
    per_lane = plan.batches * plan.batch // plan.lanes

    def local(x, kept, key):
        lanes = len(x) * plan.lanes // plan.contexts
        in_lanes = lambda a: a[:, first:].reshape(lanes, -1, *a.shape[2:])
        x, kept = in_lanes(x), None if kept is None else in_lanes(kept)

        def permute(lane, x, kept):
            order = jax.random.permutation(jax.random.fold_in(key, lane), len(x))
            if kept is not None:
                order = order[jnp.argsort(~kept[order], stable=True)]
                order = order[jnp.arange(per_lane) % jnp.maximum(kept.sum(), 1)]
            return x[order[:per_lane]]

        x = jax.vmap(permute)(lax.axis_index("data") * lanes + jnp.arange(lanes), x, kept)
        if kept is not None:
            x = _without_empty_lanes(x, kept.any(1))
        x = x.reshape(lanes, plan.batches, -1, x.shape[-1])
        return x.swapaxes(0, 1).reshape(plan.batches, -1, x.shape[-1])

    over = jax.shard_map(local, in_specs=(P("data"), P("data"), P()), out_specs=P(None, "data"))
    return tuple(over(x, kept, key) for x in arrays)


def _without_empty_lanes(x, filled):
    """A device's lanes x [lanes, R, d]; those not in `filled` [lanes] get the first row of the first lane that is."""
    everywhere = lambda a: lax.all_gather(a, "data", tiled=True)
    spare = everywhere(x[:, 0])[jnp.argmax(everywhere(filled))]
    return jnp.where(filled[:, None, None], x, spare)


@jax.jit
def _batch(chunk, i):
    return tuple(lax.dynamic_index_in_dim(x, i, keepdims=False) for x in chunk)


class TextSource:
    """Activations of a language model at a hook point, on prepared tokens."""

    dtype = np.int32

    def __init__(
        self, lm: LM, hook: str, contexts, context: int, skip_first: bool, fingerprint: str, skip: Sequence[int] = ()
    ):
        """`contexts`: a TokenContexts of `context` tokens; `skip_first` leaves out position 0, `skip` tokens by their
        id; lm lies on the mesh.
        """
        self.lm, self.hook, self.contexts = lm, str(hook), contexts
        self.hooks: tuple[str, ...] = (self.hook,)
        self.width, self.rows, self.shape = width(lm.config, self.hook), context, (context,)
        self.first, self.skip = int(skip_first), tuple(skip)
        self.masked = bool(self.skip) or contexts.padded
        self.fingerprint = fingerprint

    def __len__(self):
        return len(self.contexts)

    @property
    def order_name(self) -> str:
        return self.contexts.order_name

    @cached_property
    def count(self) -> int:
        if not self.masked:
            return len(self) * (self.rows - self.first)
        read = min(len(self), max(1, COUNTED // self.rows))
        return round(kept_rows(self, read) * len(self) / read)

    def host(self, start, stop):
        return self.contexts.read(start, stop)

    def kept(self, host):
        return _kept(host, self.first, self.skip)

    def activations(self, host):
        return _activations(self.lm, host, self.hooks)


class HooksSource(TextSource):
    """Activations at several hook points of a language model, from one pass: one array for each, in their order."""

    def __init__(self, lm: LM, hooks: Sequence[str], *args):
        """What follows `hooks` is as in a TextSource, which this is for the first of them."""
        super().__init__(lm, hooks[0], *args)
        self.hooks = tuple(map(str, hooks))


def kept_rows(source: Source, contexts: int, at_once: int = 256) -> int:
    """How many rows of the first `contexts` contexts of a source count."""
    if not source.masked:
        return contexts * (source.rows - source.first)
    starts = range(0, contexts, at_once)
    return sum(int(source.kept(source.host(i, min(i + at_once, contexts))).sum()) for i in starts)


@partial(jax.jit, static_argnames=("first", "skip"))
def _kept(tokens, first: int, skip: tuple[int, ...]):
    """Token ids [c@data, T] -> bool [c@data, T]: no padding, not before position `first`, and no token in `skip`."""
    kept = (tokens >= 0) & (jnp.arange(tokens.shape[1]) >= first)
    for token in skip:
        kept &= tokens != token
    return kept


def unmarked(tokens):
    """Token ids with 0 for padding, -1, which stands at the end of a context, where no token before it sees it."""
    return jnp.maximum(tokens, 0)


@partial(jax.jit, static_argnames="hooks")
def _activations(lm: LM, tokens, hooks: tuple[str, ...]):
    """Token ids [c@data, T] -> activations [c@data, T, width] at each hook point, some contexts at a time."""

    def local(lm, tokens):
        c, T = tokens.shape
        most = max(T, TOKENS_AT_ONCE.get(jax.default_backend(), TOKENS_AT_ONCE["gpu"]))
        some = max(b for b in range(1, c + 1) if c % b == 0 and b * T <= most)
        seen = lax.map(lambda t: prefixes(lm, t, hooks), unmarked(tokens).reshape(-1, some, T))
        return tuple(seen[hook].reshape(c, T, -1) for hook in hooks)

    return jax.tree.map(lambda a: jax.reshard(a, P("data")), on_contexts(local, lm, tokens))
