"""What a run works on: devices, a language model, data. Everything that can be wrong with them is found here."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxsae import lm as lms
from jaxsae.config import Config
from jaxsae.data.activations import TextSource
from jaxsae.data.files import FileSource
from jaxsae.data.tokens import TokenContexts, default_cache, prepare
from jaxsae.errors import BadInput
from jaxsae.lm.hooks import parse
from jaxsae.mesh import make_mesh, replicate
from jaxsae.processes import first_then_rest
from jaxsae.sae import files as sae_files
from jaxsae.training.objectives import Objective, make_objective

# Held-out contexts are taken in a shuffled order of their own, so that few of them come from many documents.
EVAL_SEED = 1


@dataclass(frozen=True)
class Setting:
    mesh: jax.sharding.Mesh
    source: Any  # a data.activations.Source, of training
    held_out: Any
    objective: Objective
    lm: lms.LM | None = None  # None where activations come from files
    hook: str | None = None


def make_setting(config: Config) -> Setting:
    """Raises BadInput for a model, a text or a mesh that cannot be used."""
    return _from_files(config) if config.data.activations is not None else _from_text(config)


def _from_files(config: Config) -> Setting:
    objective = make_objective(config.sae, config.training)
    cache = Path(config.data.cache or default_cache())
    make = partial(FileSource, config.data.activations, cache=cache)
    source = first_then_rest(lambda: make("train", config.training.seed))
    _check_size(config, source)
    mesh = choose_mesh(config, source.width)
    # The hook is only noted: it says where the files come from.
    return Setting(mesh, source, make("held_out", EVAL_SEED), objective, None, config.model.hook)


def _from_text(config: Config) -> Setting:
    name, context = config.model.lm, config.data.context
    lm = lms.load(name, config.model.lm_products)
    lm = lms.process_weights(lm) if config.model.process_weights else lm
    hook = config.model.hook or lms.default_hook(lm.config.n_layer)
    width = lm.config.width(parse(hook, lm.config.n_layer))
    if context > lm.config.n_positions:
        raise BadInput(f"--context is {context}, but {name} has {lm.config.n_positions} positions: give at most that")
    objective = make_objective(config.sae, config.training, lm.config, hook)
    mesh = choose_mesh(config, width)
    tokenise = partial(prepare, config.data.text, lms.load_tokenizer(lm), context)
    folder = first_then_rest(lambda: tokenise(config.data.cache, config.data.documents))
    fingerprint = f"{folder.name}-{lms.checksum(lm):08x}"
    lm = replicate(lm, mesh)

    def source(split, seed, skip_first):
        return TextSource(lm, hook, TokenContexts(folder, split, seed), context, skip_first, fingerprint)

    train = source("train", config.training.seed, config.data.skip_first)
    _check_size(config, train)
    return Setting(mesh, train, source("held_out", EVAL_SEED, False), objective, lm, hook)


def check_start(config: Config):
    """Raises BadInput where the autoencoder to start from is not one of this configuration."""
    path = config.training.start
    differ = sae_files.spec(path).unlike(config.sae.spec())
    n, _ = sae_files.shape(path)
    differ += [f"n {n}, not {config.sae.n}"] * (n != config.sae.n)
    if differ:
        raise BadInput(f"--start {path} has {'; '.join(differ)}: give its --sae flags, or another one")


def check_width(config: Config, width: int):
    """Raises BadInput where the autoencoder to start from is for activations of another width."""
    path, (_, d) = config.training.start, sae_files.shape(config.training.start)
    if d != width:
        raise BadInput(f"--start {path} is for activations of width {d}, and here they have {width}")


def _check_size(config: Config, source):
    available = len(source) * source.rows
    if available < config.training.batch_size:
        raise BadInput(
            f"the training data have {available} tokens, less than one batch of {config.training.batch_size}: "
            "give more or a smaller --batch-size"
        )


def mesh_shape(devices: int, memory: float | None, n: int, d: int, batch: int) -> tuple[int, int]:
    """(data, latent) for so many devices with `memory` bytes each, None where that is unknown.

    The batch divides over `data` and n over `latent`. As many devices as can be used, and of these as few on `latent`
    as leave half the memory to everything but the state; all on `latent` where even that is too little.
    """
    # Two matrices, each as parameter, two Adam moments, EMA and gradient.
    state = 2 * 4 * n * d * 5
    latents = [count for count in range(1, devices + 1) if n % count == 0]
    shapes = [(a, b) for b in latents for a in range(1, devices // b + 1) if batch % a == 0]
    roomy = [shape for shape in shapes if not memory or state / shape[1] <= memory / 2]
    if not roomy:
        return max(shapes, key=lambda shape: (shape[1], shape[0]))
    return max(roomy, key=lambda shape: (shape[0] * shape[1], -shape[1]))


def choose_mesh(config: Config, d: int) -> jax.sharding.Mesh:
    """The mesh asked for; else the devices that divide a batch on `data`, or on `latent` where the state needs it."""
    shape = config.training.mesh
    if shape is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        piece = _units(config)[0] // config.training.micro_batches
        shape = mesh_shape(jax.device_count(), memory, config.sae.n, d, piece)
    mesh = make_mesh(*shape)
    check_division(config, *shape)
    return mesh


def _units(config: Config) -> tuple[int, str]:
    """How many parts a batch has that no device splits, and what they are: tokens, or whole contexts."""
    batch, context = config.training.batch_size, config.data.context
    if config.training.objective == "local":
        return batch, "tokens"
    if batch % context:
        raise BadInput(
            f"--objective {config.training.objective} trains on whole contexts, and --batch-size {batch} is no "
            f"multiple of --context {context}: give one that is"
        )
    return batch // context, f"contexts of {context} tokens"


def check_division(config: Config, data: int, latent: int):
    """Raises BadInput where the latents or a batch do not divide over so many devices."""
    n, (batch, unit), pieces = config.sae.n, _units(config), config.training.micro_batches
    if n % latent:
        raise BadInput(
            f"--sae.n {n} does not divide over the {latent} devices of the mesh's latent axis: "
            f"give a multiple of {latent}, or another --mesh"
        )
    if batch % (data * pieces):
        in_pieces = f", in --micro-batches {pieces}" if pieces > 1 else ""
        of = "" if unit == "tokens" else f", {batch} {unit},"
        raise BadInput(
            f"--batch-size {config.training.batch_size}{of} does not divide over the {data} devices of the mesh's data "
            f"axis{in_pieces}: give a multiple of {data * pieces} {unit}, or another --mesh"
        )
