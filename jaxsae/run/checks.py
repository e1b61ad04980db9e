"""Everything that can be wrong with a training run, found before anything is written."""

from functools import partial
from pathlib import Path

import jax

from jaxsae.config import Config
from jaxsae.distributed import processes
from jaxsae.distributed.mesh import make_mesh, mesh_shape
from jaxsae.errors import BadInput
from jaxsae.run import folder as folders
from jaxsae.run import saved
from jaxsae.training.config import batch_units, check_division
from jaxsae.training.logs import check_packages
from jaxsae.training.program import make_objective


def check_before_opening(folder: Path, config: Config):
    """What the folder and the configuration alone say. All processes call it, and all raise BadInput together."""
    processes.on_all(partial(check_packages, config.log))
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


def check_data(folder: Path, config: Config, source, fingerprint: str):
    """Raises BadInput if there is less than one batch, or if a resumed run was started on other data."""
    available, batch = len(source) * source.rows, config.training.batch.batch_size
    if available < batch:
        raise BadInput(
            f"the training data have {available} tokens, less than one batch of {batch}: give more or a smaller "
            "--batch-size"
        )
    folders.check_data(folder, fingerprint)
    processes.on_all(lambda: _check_width(config, source.width) if starts_from(folder, config) else None)


def _check_spec(config: Config):
    path = config.training.init_from
    spec, n, _ = saved.facts_of(path)
    differ = spec.differences(config.sae.spec())
    if n != config.sae.n:
        differ.append(f"n {n}, not {config.sae.n}")
    if differ:
        raise BadInput(f"--init-from {path} has {'; '.join(differ)}: give its --sae flags, or another one")


def _check_width(config: Config, width: int):
    path = config.training.init_from
    *_, d = saved.facts_of(path)
    if d != width:
        raise BadInput(f"--init-from {path} is for activations of width {d}, and here they have {width}")
