"""What objectives share that run the language model downstream of the autoencoder. b contexts of T tokens, d width.

The language model is frozen. Its prefix runs once for a batch, its suffix once for the original and once for the
reconstruction (a second time for finetune_kl under micro-batches). Autoencoders at several sites act in series: a later
one reads activations that the earlier ones have changed, and what it does to their errors reaches them. The error at
every later block is logged, trained or not. (Braun et al. 2024, sec. 2, in the form of their code.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.errors import BadInput
from jaxsae.lm.architecture import around, block_ends, depth
from jaxsae.lm.divergence import kl_of_streams
from jaxsae.lm.model import advance, final, prefixes
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.normalise import denormalise, normalise_pair
from jaxsae.training.objectives.interface import Batch, squared_error
from jaxsae.training.objectives.type import Context

FINAL = "final"


@dataclass(frozen=True)
class Common:
    # What changes no result, only memory and time.
    MAY_CHANGE_ON_RESUME: ClassVar = ("kl_chunk", "remat")

    kl_chunk: int = 512
    """Tokens of a device whose logits exist at once."""
    remat: bool = False
    """Compute the language model's blocks again in the backward pass, to save memory."""

    def __post_init__(self):
        self.check("finetune-kl", ())

    def check(self, prefix: str, coefficients: tuple[str, ...]):
        """Raises BadInput if a coefficient is not a finite number of at least 0."""
        if self.kl_chunk < 1:
            raise BadInput(f"--{prefix}.kl-chunk is {self.kl_chunk}: give at least 1")
        for name in coefficients:
            if not 0 <= getattr(self, name) < math.inf:
                flag = f"--{prefix}.{name.replace('_', '-')}"
                raise BadInput(f"{flag} is {getattr(self, name)}: give 0 or more")


class Parts(NamedTuple):
    """Three functions of an `Objective`, and its sites."""

    prepare: Callable
    terms: Callable
    variances: Callable
    sites: tuple[str, ...]


def check_sites(context: Context):
    """Raises BadInput for sites that are not in the residual stream, or not in the order of the network."""
    if context.lm is None:
        raise BadInput(f"--objective {context.name} needs a language model: leave out --activations")
    hooks = [hook for hook, _ in context.sites]
    if context.hook_out is not None:
        return
    depths = [depth(context.lm, hook) for hook in hooks]
    if not hooks or depths != sorted({*depths}):
        raise BadInput(f"autoencoders at {', '.join(hooks)}: give places in the order of the network, each once")


def entry(context: Context) -> tuple[str, str, str]:
    """(where the first reconstruction is put in, the residual hook points before and after it)."""
    place = context.hook_out or context.sites[0][0]
    return place, *around(context.lm, place)


def make_parts(config: Common, context: Context, trained: Any = ()) -> Parts:
    """`trained`: hook points at which `variances` says the variance, so that the loss can use errors in units of it."""
    check_sites(context)
    sites = tuple(hook for hook, _ in context.sites)
    (read, sae), (first, before, behind) = context.sites[0], entry(context)
    # A place that is trained keeps the name that it was given.
    logged = {depth(context.lm, hook): hook for hook in (*block_ends(context.lm, before), *trained)}
    places = [logged[cut] for cut in sorted(logged)]
    step = partial(jax.checkpoint, static_argnums=(2, 3))(advance) if config.remat else advance

    def walk(lm, stream, start: str, places: list[str]) -> dict:
        """{place: [b, T, d]} from the stream at `start`."""
        streams = {}
        for place in places:
            streams[place] = stream = step(lm, stream, start, place)
            start = place
        return streams

    def put_in(lm, activation, original):
        """The stream [b, T, d] at `behind`, with another activation [b, T, d_out] at `first`."""
        if before == behind:
            return activation
        return advance(lm, original[before], before, behind, taps={first: lambda _: activation})

    def prepare(tokens, lm, scale_out=None) -> Batch:
        def run(lm, tokens):
            seen = prefixes(lm, tokens, dict.fromkeys((read, first, before)))
            streams = seen | walk(lm, seen[before], before, places)
            at = places[-1] if places else before
            return streams | {FINAL: final(lm, streams[at], at)}

        original = lax.stop_gradient(on_contexts(run, lm, tokens))
        arrays = [as_rows(original[hook]) for hook in dict.fromkeys((read, first))]
        return Batch(*normalise_pair(arrays, sae.normalise, sae.sections, scale_out), original)

    def variances(batch: Batch):
        """The variance of the original stream, over B and d, at every place whose error is trained."""
        tokens = lambda a: tuple(range(a.ndim - 1))
        variance = lambda a: jnp.mean((a - a.mean(tokens(a))) ** 2)
        return {place: variance(batch.original[place]) for place in trained}

    def segment(start: str, stop: str | None):
        """The places between two sites, `stop` included, or up to the end."""
        cut = depth(context.lm, start), math.inf if stop is None else depth(context.lm, stop)
        return [place for place in places if cut[0] < depth(context.lm, place) <= cut[1]]

    def to_next_site(stream, original, lm, start: str, stop: str):
        """(stream at `stop`, errors on the way)."""

        def run(lm, stream, original):
            streams = walk(lm, stream, start, between)
            at = between[-1] if between else start
            end = step(lm, streams.get(at, stream), at, stop)
            return end, errors_at(streams, original)

        between = segment(start, stop)
        return on_contexts(run, lm, stream, {place: original[place] for place in between})

    def to_the_end(stream, original, lm, start: str):
        """KL and the errors on the way, [b] each."""

        def run(lm, stream, original):
            # A later site's own error is that of the stream as it was before its autoencoder.
            here = {start: stream} if start == first else {}
            at, stream = (behind, put_in(lm, stream, original)) if start == first else (start, stream)
            streams = walk(lm, stream, at, after)
            at = after[-1] if after else at
            end, rows = final(lm, streams.get(at, stream), at), lambda a: a.reshape(-1, a.shape[-1])
            kl = kl_of_streams(lm, rows(original[FINAL]), rows(end), config.kl_chunk)
            return {"kl": kl.reshape(stream.shape[:2]).mean(1)} | errors_at(here | streams, original)

        after = segment(before if start == first else start, None)
        needed = {first, before, *after, FINAL}
        return on_contexts(run, lm, stream, {place: original[place] for place in needed})

    def errors_at(streams: dict, original: dict):
        return {f"mse/{place}": ((new - original[place]) ** 2).mean((1, 2)) for place, new in streams.items()}

    def terms(xhat, batch: Batch, lm, mse_scale, variances, later=()):
        lm, original, at = lax.stop_gradient(lm), batch.original, first
        stream = as_contexts(denormalise(xhat, batch.mean, batch.scale), original[first].shape)
        reconstruction, errors = squared_error(xhat, batch.y, mse_scale), {}
        for hook, substitute in zip(sites[1:], later, strict=True):
            stream, on_the_way = to_next_site(stream, original, lm, at, hook)
            stream, error = substitute(stream)
            reconstruction, errors, at = reconstruction + error, errors | on_the_way, hook
        errors |= to_the_end(stream, original, lm, at)
        means = jax.tree.map(jnp.mean, errors)
        means |= {f"fvu/{place}": means[f"mse/{place}"] / variance for place, variance in variances.items()}
        return means | {"reconstruction": reconstruction}

    return Parts(prepare, terms, variances, sites)


def as_rows(a):
    """[b, T, d] -> [B@data, d]."""
    b, T, d = a.shape
    return lax.reshape(jax.reshard(a, P("data")), (b * T, d), out_sharding=P("data"))


def as_contexts(a, shape):
    """[B@data, d] -> [b@data, T, d]."""
    return lax.reshape(a, shape, out_sharding=P("data"))
