"""What a run works on: devices, a language model, data. Everything that can be wrong with them is found here."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae import lm as lms
from jaxsae.config import Config
from jaxsae.data.activations import TextSource
from jaxsae.data.files import FileSource
from jaxsae.data.tokens import TokenContexts, default_cache, prepare
from jaxsae.errors import BadInput
from jaxsae.lm.hooks import parse
from jaxsae.mesh import make_mesh

# Held-out contexts are taken in a shuffled order of their own, so that few of them come from many documents.
EVAL_SEED = 1


@dataclass(frozen=True)
class Setting:
    mesh: jax.sharding.Mesh
    source: Any  # a data.activations.Source, of training
    held_out: Any
    lm: lms.LM | None = None  # None where activations come from files
    hook: str | None = None


def make_setting(config: Config) -> Setting:
    """Raises BadInput for a model, a text or a mesh that cannot be used."""
    return _from_files(config) if config.data.activations is not None else _from_text(config)


def _from_files(config: Config) -> Setting:
    cache = Path(config.data.cache or default_cache())
    make = partial(FileSource, config.data.activations, cache=cache)
    source = make("train", config.training.seed)
    _check_size(config, source)
    mesh = choose_mesh(config, source.width)
    # The hook is only noted: it says where the files come from.
    return Setting(mesh, source, make("held_out", EVAL_SEED), None, config.model.hook)


def _from_text(config: Config) -> Setting:
    name, context = config.model.lm, config.data.context
    lm = lms.load(name, config.model.lm_products)
    lm = lms.process_weights(lm) if config.model.process_weights else lm
    hook = config.model.hook or lms.default_hook(lm.config.n_layer)
    width = lm.config.width(parse(hook, lm.config.n_layer))
    if context > lm.config.n_positions:
        raise BadInput(f"--context is {context}, but {name} has {lm.config.n_positions} positions: give at most that")
    mesh = choose_mesh(config, width)
    folder = prepare(config.data.text, lms.load_tokenizer(lm), context, config.data.cache, config.data.documents)
    fingerprint = f"{folder.name}-{lms.checksum(lm):08x}"
    lm = jax.device_put(lm, NamedSharding(mesh, P()))

    def source(split, seed, skip_first):
        return TextSource(lm, hook, TokenContexts(folder, split, seed), context, skip_first, fingerprint)

    train = source("train", config.training.seed, config.data.skip_first)
    _check_size(config, train)
    return Setting(mesh, train, source("held_out", EVAL_SEED, False), lm, hook)


def _check_size(config: Config, source):
    available = len(source) * source.rows
    if available < config.training.batch_size:
        raise BadInput(
            f"the training data have {available} tokens, less than one batch of {config.training.batch_size}: "
            "give more or a smaller --batch-size"
        )


def choose_mesh(config: Config, d: int) -> jax.sharding.Mesh:
    """The mesh asked for; else the devices that divide a batch on `data`, or on `latent` where the state needs it."""
    n, batch, shape = config.sae.n, config.training.batch_size, config.training.mesh
    if jax.process_count() > 1:
        raise BadInput(f"this run has {jax.process_count()} processes: only one process, with all its devices, works")
    if shape is None:
        devices = max(count for count in range(1, jax.device_count() + 1) if batch % count == 0)
        latent = 1
        # Two matrices, each as parameter, two Adam moments, EMA and gradient.
        state = 2 * 4 * n * d * 5
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        while memory and state / latent > memory / 2 and devices % (2 * latent) == 0 and n % (2 * latent) == 0:
            latent *= 2
        shape = devices // latent, latent
    mesh = make_mesh(*shape)
    if n % shape[1]:
        raise BadInput(
            f"--sae.n {n} does not divide over the {shape[1]} devices of the mesh's latent axis: "
            f"give a multiple of {shape[1]}, or another --mesh"
        )
    if batch % shape[0]:
        raise BadInput(
            f"--batch-size {batch} does not divide over the {shape[0]} devices of the mesh's data axis: "
            f"give a multiple of {shape[0]}, or another --mesh"
        )
    return mesh
