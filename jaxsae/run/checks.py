"""Everything that can be wrong with a training run, found before anything is written."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import jax

from jaxsae.config import Config, fields_of
from jaxsae.distributed import processes
from jaxsae.distributed.mesh import make_mesh, mesh_shape
from jaxsae.errors import BadInput
from jaxsae.lm.architecture import parse
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


def check_objective(config: Config, lm, hook: str | tuple[str, ...]):
    """Raises BadInput if the objective cannot be computed at `hook` of a language model, whose configuration `lm` is
    (None: activations come from files), or if the autoencoder does not divide over --mesh.
    """
    if lm is not None:
        for name in (hook,) if isinstance(hook, str) else hook:
            parse(lm, name)
    if (mesh := config.training.batch.mesh) is not None:
        check_division(config.sae, config.training, config.data.context, *mesh)
    reads_contexts = config.training.type.reads == "contexts"
    make_objective([(hook, config.sae)], config.training, lm if reads_contexts else None, config.lm.hook_out)


def training_mesh(configs: Sequence[Config], d: int) -> jax.sharding.Mesh:
    """--mesh if given, else all usable devices on `data`, moving to `latent` only as far as memory requires.

    `configs` are of autoencoders that are trained side by side. Raises BadInput if their latents or a batch do not
    divide over it, or d into the sections of a crosscoder.
    """
    for sections in (config.sae.sections for config in configs):
        if d % sections:
            raise BadInput(f"--sae.sections is {sections}: activations of width {d} do not divide into so many")
    training, context = configs[0].training, configs[0].data.context
    shape = training.batch.mesh
    if shape is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        pieces = math.lcm(*(config.training.batch.micro_batches for config in configs))
        # All of them divide where this many latents do, and each takes its share of the memory.
        n, total = math.gcd(*(config.sae.n for config in configs)), sum(config.sae.n for config in configs)
        part = max(1, batch_units(training, context)[0] // pieces)
        shape = mesh_shape(jax.device_count(), memory and memory * n / total, n, d, part)
    mesh = make_mesh(*shape)
    for config in configs:
        check_division(config.sae, config.training, context, *shape)
    return mesh


def check_identity(folder: Path, config: Config, asked: Collection[str], fingerprints: dict[str, str]):
    """Raises BadInput if a resumed run was started on other data or another model, or if the autoencoder to start from
    was trained on others, but for fields of the configuration that were `asked` for.
    """
    folders.check_identity(folder, config, fingerprints)
    check_start = partial(_check_start, config, fingerprints, asked)
    processes.on_all(lambda: check_start() if starts_from(folder, config) else None)


def check_data(folder: Path, config: Config, source, width: int):
    """Raises BadInput if there is less than one batch, or if a resumed run would read it in another order.

    `width`: of the activations that the run reads.
    """
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
    processes.on_all(lambda: _check_width(config, width) if starts_from(folder, config) else None)


def _check_spec(config: Config):
    path = config.training.init_from
    spec, n, _, extras = saved.facts_of(path)
    differ = spec.differences(config.sae.spec())
    # Transcoders of other libraries have no unit of the output.
    has, asked = (kinds - {"scale_out"} for kinds in (extras, saved.optional_arrays(config)))
    if has != asked or (extras and config.lm.hook_out is None):
        name = lambda arrays: ", ".join(sorted(arrays)) or "none"
        differ.append(f"the arrays {name(extras)} of transcoders, not {name(saved.optional_arrays(config))}")
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
    _, _, d, _ = saved.facts_of(path)
    if d != width:
        raise BadInput(f"--init-from {path} is for activations of width {d}, and here they have {width}")
