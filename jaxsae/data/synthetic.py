"""Activations whose features are known, `--activations synthetic:NAME`: sums of a few directions, with noise.

    x = sum of magnitude times direction over the features that fire, plus noise

c contexts, ROWS rows each, d width, F features. How often features fire falls as their rank's power (Zipf); they may
stand in a hierarchy, where a child fires only if its parent does, and in groups whose features tend to fire together.
All is a pure function of the name and of a context's number, computed on the devices: nothing is stored.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxsae.data.config import SYNTHETIC
from jaxsae.data.tokens import HELD_OUT_EVERY
from jaxsae.errors import BadInput
from jaxsae.lm.parallel import on_contexts

# Rows of a context, and contexts before the order repeats: 16.8 million rows.
ROWS, CONTEXTS = 64, 1 << 18
# No feature fires more often than on this share of the rows.
MOST = 0.2
# A group of features is excited on this share of the rows.
EXCITED = 0.25


@dataclass(frozen=True)
class World:
    """How activations are made."""

    features: int = 256
    width: int = 64
    active: float = 8.0  # features that fire on a row, on average; fewer where a hierarchy forbids it
    exponent: float = 1.0  # of the frequencies: rank to the power of minus this
    children: int = 0  # of each feature that has some; the first features are parents, and each child has one
    correlation: float = 0.0  # 0 to 1: how much more often a group's features fire where it is excited, and less else
    group: int = 8  # features of a group
    manifold: int = 1  # a feature that fires is a random point of a sphere in so many dimensions; 1: one direction
    noise: float = 0.01  # standard deviation of each coordinate
    seed: int = 0


WORLDS = {
    "zipf": World(),
    "hierarchy": World(children=4),
    "correlated": World(correlation=0.5),
    "mixed": World(children=4, correlation=0.5),
    # Noise alone, of the embedded model's width and of GPT-2 small's: the one feature never fires.
    "gaussian": World(features=1, width=192, active=0.0, noise=1.0),
    "gaussian-768": World(features=1, width=768, active=0.0, noise=1.0),
    # Michaud et al. 2025: the same frequencies of features that one latent can represent, or many must.
    "points": World(features=1024, active=4.0, exponent=1.5),
    "manifolds": World(features=1024, active=4.0, exponent=1.5, manifold=4),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Truth:
    """The arrays of a world."""

    directions: Any  # [F * manifold, d] unit rows whose coordinates sum to 0, those of a feature beside each other
    often: Any  # [F] the share of rows on which a feature fires, of those where its parent does
    parents: Any  # [F] a feature's parent; its own number if it has none
    groups: Any  # [F] the number of a feature's group


def world_of(activations: str) -> World:
    """The world that --activations names. Raises BadInput for an unknown one."""
    name = activations.removeprefix(SYNTHETIC)
    if name not in WORLDS:
        raise BadInput(
            f"--activations {activations} is unknown: allowed are {', '.join(SYNTHETIC + w for w in WORLDS)}"
        )
    return WORLDS[name]


def frequencies(world: World) -> np.ndarray:
    """How often each feature fires [F], the most frequent first: `active` in sum, none above MOST."""
    ranks = np.arange(1, world.features + 1) ** -world.exponent
    low, high = 0.0, world.active / ranks.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * ranks, MOST).sum() < world.active else (low, middle)
    return np.minimum(high * ranks, MOST)


def truth_of(world: World) -> Truth:
    """The arrays of a world, on the host."""
    rng = np.random.default_rng(world.seed)
    directions = rng.normal(size=(world.features * world.manifold, world.width))
    # An autoencoder that subtracts the mean of a token's coordinates takes nothing away.
    directions -= directions.mean(1, keepdims=True)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    number, often = np.arange(world.features), frequencies(world)
    parents = number
    if world.children:
        roots = max(1, world.features // (world.children + 1))
        parents = np.where(number < roots, number, (number - roots) % roots)
        # A child fires as often as without its parent, so far as that allows.
        often = np.where(parents == number, often, np.minimum(often / often[parents], 1))
    groups = number % max(1, world.features // world.group)
    return Truth(directions.astype(np.float32), often.astype(np.float32), parents, groups)


class SyntheticSource:
    """Contexts of a world. Every twentieth is held out."""

    dtype, shape = np.int32, (1,)
    rows, first, masked = ROWS, 0, False

    def __init__(self, world: World, split: str, seed: int | None, contexts: int = CONTEXTS):
        """`split` is train, held_out or all; `seed` shuffles the order of the contexts, None keeps it."""
        import grain

        numbers = np.arange(contexts, dtype=np.int32)
        held_out = numbers % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        self.numbers = numbers[{"train": ~held_out, "held_out": held_out, "all": slice(None)}[split]]
        self.world, self.width = world, world.width
        order = grain.MapDataset.range(len(self.numbers))
        self.order = order if seed is None else order.seed(seed).shuffle().repeat()
        # Worlds of the first version had no manifolds, and keep the fingerprints that runs saved.
        text = repr(world).replace(f", manifold={World.manifold}", "")
        self.fingerprint = f"synthetic-{hashlib.sha256(text.encode()).hexdigest()[:20]}"

    @cached_property
    def truth(self) -> Truth:
        return truth_of(self.world)

    def __len__(self):
        return len(self.numbers)

    @property
    def count(self) -> int:
        return len(self) * ROWS

    def host(self, start, stop):
        """Numbers of contexts, int32 [stop - start, 1]."""
        return np.stack([self.numbers[int(self.order[i]) : int(self.order[i]) + 1] for i in range(start, stop)])

    @property
    def order_name(self) -> str:
        return "without end"

    def kept(self, host):
        return jnp.repeat(host >= 0, ROWS, axis=1)

    def activations(self, host):
        return (self.made(host)[0],)

    def made(self, host):
        """Activations [c@data, ROWS, d], and the magnitudes of features [c@data, ROWS, F], 0 if they do not fire."""
        return _made(self.truth, host, self.world)


def _context(truth: Truth, number, world: World):
    """Activations [ROWS, d] and magnitudes [ROWS, F * manifold] of context `number`."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(world.seed), number), 3)
    chance = jax.random.uniform(keys[0], (ROWS, world.features))
    often = truth.often
    if world.correlation:
        excited = jax.random.uniform(keys[1], (ROWS, world.features // world.group + 1)) < EXCITED
        # On average over both, features fire as often as without.
        more, less = 1 + world.correlation * (1 / EXCITED - 1), 1 - world.correlation
        often = jnp.minimum(often * jnp.where(excited[:, truth.groups], more, less), 1)
    fires = chance < often
    # Where it is below `often`, the quotient is uniform between 0 and 1: magnitudes are between 0.5 and 1.5.
    magnitudes = jnp.where(fires & fires[:, truth.parents], 0.5 + chance / often, 0)
    if world.manifold > 1:
        point = jax.random.normal(jax.random.fold_in(keys[0], 1), (*magnitudes.shape, world.manifold))
        point = point / jnp.linalg.norm(point, axis=-1, keepdims=True)
        magnitudes = (magnitudes[..., None] * point).reshape(ROWS, -1)
    x = jnp.matmul(magnitudes, truth.directions, precision="highest")
    return x + world.noise * jax.random.normal(keys[2], (ROWS, world.width)), magnitudes


@partial(jax.jit, static_argnames="world")
def _made(truth: Truth, host, world: World):
    """Activations [c@data, ROWS, d] and magnitudes [c@data, ROWS, F] of contexts, from their numbers [c@data, 1]."""
    local = lambda truth, host: jax.lax.map(lambda number: _context(truth, number, world), host[:, 0])
    return jax.tree.map(lambda a: jax.reshard(a, P("data")), on_contexts(local, truth, host))
