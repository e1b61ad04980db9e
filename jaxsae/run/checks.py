"""Everything that can be wrong with a training run, found before anything is written."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import jax

from jaxsae.config import Config, fields_of
from jaxsae.distributed import processes
from jaxsae.distributed.mesh import make_mesh, mesh_shape
from jaxsae.errors import BadInput
from jaxsae.run import folder as folders
from jaxsae.run import identity, places, saved
from jaxsae.run.folder import CONFIG
from jaxsae.training.config import batch_units, check_division
from jaxsae.training.logs import check_packages
from jaxsae.training.program import make_objective


def check_before_opening(folder: Path, config: Config):
    """What the folder and the configuration alone say. All processes call it, and all raise BadInput together."""
    processes.on_all(partial(check_packages, config.log))
    if config.resume:
        processes.on_all(lambda: places.check_found(config, str(folder)) if (folder / CONFIG).exists() else None)
    processes.on_all(lambda: _check_spec(config) if starts_from(folder, config) else None)


def starts_from(folder: Path, config: Config) -> str | None:
    """The autoencoder that training starts from. Once there is a checkpoint, --init-from no longer matters."""
    return None if any(folder.glob("checkpoints/*")) else config.training.init_from


def check_objective(config: Config, lm, hook: str):
    """Raises BadInput if the objective cannot be computed at `hook` of a language model, whose configuration `lm` is
    (None: activations come from files).
    """
    reads_contexts = config.training.type.reads == "contexts"
    make_objective([(hook, config.sae)], config.training, lm if reads_contexts else None)


def training_mesh(config: Config, d: int) -> jax.sharding.Mesh:
    """--mesh if given, else all usable devices on `data`, moving to `latent` only as far as memory requires.

    Raises BadInput if the latents or a batch do not divide over it.
    """
    shape, training = config.training.batch.mesh, config.training
    if shape is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        part = batch_units(training, config.data.context)[0] // training.batch.micro_batches
        shape = mesh_shape(jax.device_count(), memory, config.sae.n, d, part)
    mesh = make_mesh(*shape)
    check_division(config.sae, training, config.data.context, *shape)
    return mesh


def check_identity(folder: Path, config: Config, asked: Collection[str], fingerprints: dict[str, str]):
    """Raises BadInput if a resumed run was started on other data or another model, or if the autoencoder to start from
    was trained on others, but for fields of the configuration that were `asked` for.
    """
    folders.check_identity(folder, config, fingerprints)
    check_start = partial(_check_start, config, fingerprints, asked)
    processes.on_all(lambda: check_start() if starts_from(folder, config) else None)


def check_data(folder: Path, config: Config, source):
    """Raises BadInput if there is less than one batch, or if a resumed run would read it in another order."""
    available, batch = source.count, config.training.batch.batch_size
    if config.training.type.reads == "contexts" and source.masked:
        raise BadInput(
            f"--objective {config.training.objective} trains on contexts that are full of text, and these have "
            "padding: leave out --pack documents"
        )
    if available < batch:
        raise BadInput(
            f"the training data have {available} tokens, less than one batch of {batch}: give more or a smaller "
            "--batch-size"
        )
    processes.on_primary(partial(folders.check_order, folder, source.order_name))
    processes.on_all(lambda: _check_width(config, source.width) if starts_from(folder, config) else None)


def _check_spec(config: Config):
    path = config.training.init_from
    spec, n, _ = saved.facts_of(path)
    differ = spec.differences(config.sae.spec())
    if n != config.sae.n:
        differ.append(f"n {n}, not {config.sae.n}")
    if differ:
        raise BadInput(f"--init-from {path} has {'; '.join(differ)}: give its --sae flags, or another one")


def _check_start(config: Config, fingerprints: dict[str, str], asked: Collection[str]):
    path = config.training.init_from
    was = saved.fingerprints_of(path)
    if not identity.changed(was, fingerprints):
        return
    # Another name asks for something else, too.
    names, before = fields_of(config), fields_of(saved.config_of(path))
    renamed = {field for field in identity.fields(was) if names[field] != before[field]}
    identity.check_same(was, fingerprints, config, {*asked, *renamed}, f"--init-from {path}")


def _check_width(config: Config, width: int):
    path = config.training.init_from
    *_, d = saved.facts_of(path)
    if d != width:
        raise BadInput(f"--init-from {path} is for activations of width {d}, and here they have {width}")
