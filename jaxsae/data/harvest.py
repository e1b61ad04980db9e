"""Write activations of a language model to shards, once, for many runs. c contexts of a shard, T tokens each.

A shard holds whole contexts: each hook point's activations [c, T, width] and the token ids [c, T], -1 where a context
holds nothing. What is in a shard depends on its number alone, and the index names a shard only when it is whole: a
harvest that is stopped at any time and started again ends with the same bytes.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from jaxsae.data import harvested
from jaxsae.data.activations import TOKENS_AT_ONCE, Source, unmarked
from jaxsae.data.arrays import read
from jaxsae.data.harvested import TOKENS, Harvest
from jaxsae.data.scan import digest
from jaxsae.distributed.mesh import place
from jaxsae.errors import BadInput
from jaxsae.io import atomic, safetensors_rows
from jaxsae.lm.architecture import width
from jaxsae.lm.model import LM, prefixes
from jaxsae.lm.parallel import on_contexts

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# What may differ when a harvest goes on: where model and text lie, how much is written, and what is written so far.
MAY_CHANGE = ("lm", "text", "tokens", "shards", "complete", "special_tokens", "format")


def write(folder: Path, harvest: Harvest, lm: LM, sources: Mapping[str, Source], mesh: jax.sharding.Mesh) -> Harvest:
    """Write what `harvest` asks for, the contexts of `sources` by split; returns the finished harvest.

    Shards that are there and whole are kept. Raises BadInput if the folder holds something else.
    """
    plan = _plan(harvest)
    done = _kept(folder, harvest, plan, sources)
    harvest = replace(harvest, shards=done, complete=set(done) == set(plan))
    if harvest.complete and harvested.find(folder) == harvest:
        return harvest
    folder.mkdir(parents=True, exist_ok=True)
    harvested.write(folder, harvest)
    tokens = sum(stop - start for name, (_, start, stop) in plan.items() if name not in done) * harvest.context
    with tqdm(total=tokens, unit="tok", unit_scale=True, desc="harvesting") as bar, ThreadPoolExecutor(1) as writer:
        saved: Future | None = None
        for name, (split, start, stop) in plan.items():
            if name in done:
                continue
            tensors = _activations(harvest, lm, sources[split], start, stop, mesh, bar)
            if saved is not None:
                done |= saved.result()
            # The next shard is computed while this one is written.
            saved = writer.submit(_save, folder, harvest, dict(done), name, tensors)
        done |= saved.result() if saved is not None else {}
    harvest = replace(harvest, shards=_ordered(done, plan), complete=True)
    harvested.write(folder, harvest)
    return harvest


def _plan(harvest: Harvest) -> dict[str, tuple[str, int, int]]:
    """The shards by name: of which split they are, and their first and last context in its order."""
    step = max(1, harvest.shard_tokens // harvest.context)
    plan = {}
    for split, tokens in harvest.tokens.items():
        contexts = tokens // harvest.context
        for number, start in enumerate(range(0, contexts, step)):
            plan[harvested.shard_name(split, number)] = (split, start, min(start + step, contexts))
    return plan


def _kept(folder: Path, harvest: Harvest, plan: dict, sources: Mapping[str, Source]) -> dict[str, dict[str, str]]:
    """The finished shards of `plan` with their checksums, after a look at every byte."""
    before = harvested.find(folder)
    if before is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"--out {folder} holds something else than a harvest: give a folder that is not there yet")
        return {}
    fields = [name for name in Harvest.__dataclass_fields__ if name not in MAY_CHANGE]
    differ = [name for name in fields if getattr(before, name) != getattr(harvest, name)]
    if differ:
        facts = "; ".join(f"{name} was {getattr(before, name)}, not {getattr(harvest, name)}" for name in differ)
        raise BadInput(f"--out {folder} is another harvest, {facts}: give the same flags, or another folder")
    if more := [name for name in before.shards if name not in plan]:
        had = ", ".join(f"{tokens} of {split}" for split, tokens in before.tokens.items())
        raise BadInput(
            f"--out {folder} holds more than that, such as {more[0]}: ask for its tokens, {had}, or for more"
        )
    with tqdm(desc="checking shards", unit="shard", total=len(before.shards), disable=len(before.shards) < 20) as bar:
        kept = {}
        for name, checksums in before.shards.items():
            split, start, stop = plan[name]
            if (tokens := _tokens_of(folder / name, checksums)) is not None:
                if not np.array_equal(tokens, sources[split].host(start, start + len(tokens))):
                    raise BadInput(
                        f"--out {folder} holds other contexts in {name} than these flags and this text give: give what "
                        "it was begun with, or another folder"
                    )
                if len(tokens) == stop - start:
                    kept[name] = checksums
            bar.update()
    return _ordered(kept, plan)


def _tokens_of(path: Path, checksums: dict[str, str]) -> np.ndarray | None:
    """The token ids [c, T] of a shard that holds what was written; None if it does not."""
    try:
        tensors = read(path)
    except BadInput:
        return None
    whole = set(tensors) == set(checksums) and all(digest(x) == checksums[name] for name, x in tensors.items())
    return tensors[TOKENS] if whole else None


def _ordered(shards: dict, plan: dict) -> dict:
    return {name: shards[name] for name in plan if name in shards}


def _save(folder: Path, harvest: Harvest, done: dict, name: str, tensors: dict[str, np.ndarray]) -> dict:
    """Write a shard, then the index that names it; returns its entry there."""
    atomic.write(folder / name, lambda path: safetensors_rows.write(path, tensors, {"jaxsae": "harvest"}))
    entry = {name: {tensor: digest(array) for tensor, array in tensors.items()}}
    harvested.write(folder, replace(harvest, shards=done | entry, complete=False))
    return entry


def _activations(
    harvest: Harvest, lm: LM, source: Source, start: int, stop: int, mesh: jax.sharding.Mesh, bar: tqdm
) -> dict[str, np.ndarray]:
    """The tensors of the shard with contexts `start` to `stop` of a source."""
    T, devices = harvest.context, mesh.size
    dtype = DTYPES[harvest.dtype]
    tensors = {hook: np.empty((stop - start, T, width(lm.config, hook)), dtype) for hook in harvest.hooks}
    tensors[TOKENS] = np.empty((stop - start, T), np.int32)
    # As many as training reads at once, and always the same number, so that every shard is computed by one program.
    size = devices * max(1, TOKENS_AT_ONCE.get(jax.default_backend(), TOKENS_AT_ONCE["gpu"]) // T)
    running = None
    for first in range(start, stop, size):
        tokens = source.host(first, min(first + size, stop))
        filled = np.concatenate([tokens, np.full((size - len(tokens), T), -1, np.int32)])
        tensors[TOKENS][first - start : first - start + len(tokens)] = tokens
        on_mesh = place(lambda a, z, filled=filled: filled[a:z], filled.shape, np.int32, NamedSharding(mesh, P("data")))
        with jax.set_mesh(mesh):
            values = _read(lm, on_mesh, harvest.hooks, harvest.dtype)
        # The one before is fetched while this one is computed.
        if running is not None:
            _fetch(*running, harvest, tensors, bar)
        running = values, first - start, len(tokens)
    _fetch(*running, harvest, tensors, bar)
    return tensors


def _fetch(values, start: int, count: int, harvest: Harvest, tensors: dict[str, np.ndarray], bar: tqdm):
    """Copy the activations of `count` contexts from the devices into a shard's tensors, from context `start` on."""
    for hook, (x, finite) in zip(harvest.hooks, values):
        if not finite:
            raise BadInput(
                f"at {hook} the model gives numbers that {harvest.dtype} cannot hold: give --dtype "
                + ("bfloat16 or float32" if harvest.dtype == "float16" else "float32, or another model")
            )
        tensors[hook][start : start + count] = np.asarray(x)[:count]
    bar.update(count * harvest.context)


@partial(jax.jit, static_argnames=("hooks", "dtype"))
def _read(lm: LM, tokens, hooks: tuple[str, ...], dtype: str):
    """Token ids [c@data, T] -> for each hook (activations [c@data, T, width], whether all are finite), in one pass.

    Of the model, what comes after the last hook point is not computed. Activations where there is no token are 0.
    """

    def local(lm, tokens):
        seen = prefixes(lm, unmarked(tokens), hooks)
        return tuple(jnp.where((tokens >= 0)[..., None], seen[hook], 0).astype(dtype) for hook in hooks)

    return tuple((x, jnp.isfinite(x).all()) for x in on_contexts(local, lm, tokens))
