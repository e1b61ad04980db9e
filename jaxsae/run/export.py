"""A checkpoint of a run as an autoencoder on disk."""

import math
from pathlib import Path

import jax

from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.interop import native
from jaxsae.run import folder as folders
from jaxsae.run.folder import CONFIG, MANIFEST
from jaxsae.run.saved import about_of, export_of, restore


def export(folder: Path, step: int | None = None, out: Path | None = None) -> Path:
    """Write the checkpoint of `step` (default: the newest) of the run in `folder`; returns the folder that was written.

    The default is sae/ in the run folder, and sae-STEP/ if a step is given: a finished export is never replaced by an
    older one. Raises BadInput if there is no such checkpoint, or if `out` holds an autoencoder already.
    """
    config = configs.from_json(folder / CONFIG)
    if out is None:
        out = folder / ("sae" if step is None else f"sae-{step}")
    elif (out / native.WEIGHTS).exists():
        raise BadInput(f"--out {out} holds an autoencoder already: give another folder")
    state = restore(folder, config, _mesh(folder, config), step)
    there = folders.read(out / native.CONFIG).get("about", {}).get("steps", 0)
    if there > int(state.step):
        raise BadInput(
            f"{out} holds the autoencoder of step {there}, and the newest checkpoint is of step {int(state.step)}: "
            "give --out a folder that is not there yet"
        )
    native.save(export_of(state, config), out, about_of(folder, config, state))
    return out


def _mesh(folder: Path, config: Config) -> jax.sharding.Mesh:
    """The mesh that the run had, if there are as many devices, else the latents over all devices if they divide."""
    devices = jax.device_count()
    shape = tuple(folders.read(folder / MANIFEST).get("mesh", {}).values())
    if not shape or math.prod(shape) > devices:
        shape = (1, devices if config.sae.n % devices == 0 else 1)
    return make_mesh(*shape)
