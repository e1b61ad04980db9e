"""What a run has saved so far: its newest checkpoint, as an autoencoder."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxsae import compatibility, interop
from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.interop import native
from jaxsae.interop.interface import NOTHING, Given
from jaxsae.lm import default_hook
from jaxsae.lm.weights import find_folder, read_config
from jaxsae.run import folder as folders
from jaxsae.run import foreign, identity, places
from jaxsae.run.folder import CONFIG, MANIFEST, SUMMARY
from jaxsae.run.record import about
from jaxsae.sae.types import SAE, Spec
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.export import exported
from jaxsae.training.init_state import abstract_state
from jaxsae.training.step import TrainState


def load(
    path: str | Path,
    file: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    format: str | None = None,
    **given,
) -> SAE:
    """The autoencoder in a run, in an exported folder, in a file, in another library's folder, or on the hub; of a run
    that was stopped, its newest checkpoint.

        sae = jaxsae.load("runs/demo")      # arrays W_enc [n, d], b_enc [n], W_dec [n, d], b_dec [d], extra
        sae = jaxsae.load("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
        sae = jaxsae.load("layer3.sae.pt", k=50)

    `file` is a file or folder inside `path`. The format is recognised by what is there; `format` names it. `given` says
    what a format leaves open: k, hook, normalise and the other fields of `interop.interface.Given`. On `mesh` if one is
    given: then each process reads only what its devices hold. Raises BadInput if there is none, or if it does not say
    what its arrays mean.
    """
    folder = Path(path)
    if not _is_unfinished(folder):
        return interop.load(path, mesh, file, format, given_by(given))
    config = configs.from_json(folder / CONFIG)
    sae = export_of(restore(folder, config, mesh or make_mesh(1, 1)), config)
    return sae if mesh is not None else jax.tree.map(jnp.asarray, jax.device_get(sae))


def describe(path: str | Path, file: str | None = None, format: str | None = None, **given) -> dict:
    """What is known about a saved autoencoder: its spec, hook, model and training facts, as saved, nothing guessed.

        jaxsae.describe("runs/demo")["hook"]    # "blocks.3.hook_resid_post"

    Arguments are those of `load`.
    """
    return _located(as_saved(path, file, format, given_by(given)), Path(path))


def as_saved(path: str | Path, file: str | None = None, format: str | None = None, given: Given = NOTHING) -> dict:
    """What `describe` says, without the places of what it was trained on."""
    folder = Path(path)
    if not _is_unfinished(folder):
        return interop.describe(path, file, format, given)
    config = configs.from_json(folder / CONFIG)
    state = restore(folder, config, make_mesh(1, 1))
    facts = about_of(folder, config, state) | {"spec": dataclasses.asdict(config.sae.spec())}
    # As if it had been saved and read again.
    return json.loads(json.dumps(facts))


def given_by(values: dict) -> Given:
    """What the user says of a file. Raises BadInput for what cannot be said."""
    known = [f.name for f in dataclasses.fields(Given)]
    if unknown := [name for name in values if name not in known]:
        raise BadInput(f"{', '.join(unknown)}: nothing is known by that name; what may be given is {', '.join(known)}")
    return Given(**values)


def _located(about: dict, path: Path) -> dict:
    """What an autoencoder says of itself, with the places of what it was trained on, as far as they are known here."""
    if "config" not in about:
        return about
    config = configs.from_dict(about["config"], f"the autoencoder in {path}")
    # This is an export, the file in one, or a run, which has its export in a folder.
    folder = path.parent if path.is_file() else path / "sae" if (path / MANIFEST).is_file() else path
    config = places.located(config, identity.saved(about, config.lm.process_weights), folder)
    reads_text = config.data.activations is None
    names = {"lm": config.lm.lm, "text": list(config.data.text)} if reads_text else {}
    about |= names | {"activations": config.data.activations, "config": configs.to_dict(config)}
    return json.loads(json.dumps(about))


def optional_arrays(config: Config) -> set[str]:
    """Those arrays of the autoencoder of a configuration that not every one has."""
    if config.lm.hook_out is None:
        return set()
    own = {"b_in"} if config.sae.subtract_b_dec else set()
    return own | {"scale_out"} | ({"W_skip"} if config.sae.skip else set())


def facts_of(path: str | Path) -> tuple[Spec, int, int, set[str]]:
    """(its mathematics, n, d, the arrays that not every one has) of what `load` reads, of which no numbers are read."""
    folder = Path(path)
    if not _is_unfinished(folder):
        sae = interop.read(path)[0]
        return sae.spec, *sae.W_enc.shape, {name for name in native.OPTIONAL if getattr(sae, name) is not None}
    config = configs.from_json(folder / CONFIG)
    with Checkpoints(folder / "checkpoints", config.log.keep_checkpoints, tidy=False) as checkpoints:
        return config.sae.spec(), config.sae.n, checkpoints.widths()[0], optional_arrays(config)


def is_run(folder: Path) -> bool:
    """Whether a run has begun to train in `folder`; other libraries have folders called checkpoints too."""
    return (folder / "checkpoints").is_dir() and (folder / CONFIG).is_file()


def _is_unfinished(folder: Path) -> bool:
    """Whether training has not come to its end: sae/ may then be there, exported on the way, and older."""
    if not is_run(folder):
        return False
    if not (folder / "sae" / native.WEIGHTS).is_file():
        return True
    # A run that is trained for longer has the summary of its first end.
    return folders.read(folder / SUMMARY).get("step") != configs.from_json(folder / CONFIG).training.steps


def restore(folder: Path, config: Config, mesh: jax.sharding.Mesh, step: int | None = None) -> TrainState:
    """The state of a run's checkpoint of `step` (default: the newest), without its optimizer.

    The run may be training: nothing in its folder is touched. Raises BadInput if there is no such checkpoint.
    """
    with Checkpoints(folder / "checkpoints", config.log.keep_checkpoints, tidy=False) as checkpoints:
        if not checkpoints.steps():
            raise BadInput(f"{folder} has no checkpoint yet: train it first")
        d, d_out = checkpoints.widths()
        like = abstract_state(config.sae, config.training, d, mesh, d_out)
        return checkpoints.restore(dataclasses.replace(like, opt=None), step)


def config_of(folder: str | Path) -> Config:
    """The configuration that a run, or an exported autoencoder, was trained with. Raises BadInput if it says none."""
    folder = Path(folder)
    if is_run(folder):
        return configs.from_json(folder / CONFIG)
    about, source = describe(folder), f"the autoencoder in {folder}"
    if "config" in about:
        return configs.from_dict(about["config"], source)
    if "format" in about:
        return foreign.config_of(about)
    document = compatibility.config_of_about_1(about, about["spec"], source)
    return configs.from_dict({"format": configs.FORMAT, **document}, source)


def fingerprints_of(path: str | Path) -> dict[str, str]:
    """The fingerprints of what a run, or an exported autoencoder, was trained on, as far as it says any."""
    folder = Path(path)
    if is_run(folder):
        return identity.saved(folders.read(folder / MANIFEST), config_of(folder).lm.process_weights)
    about = interop.describe(folder)
    return identity.saved(about, about.get("process_weights", False))


def export_of(state: TrainState, config: Config) -> SAE:
    """The finished autoencoder of a state, on its mesh."""
    with jax.set_mesh(state.idle.sharding.mesh):
        return exported(state, config.training.ema_decay())


def idle_fractions(state: TrainState, config: Config) -> dict[str, float]:
    """Shares of the latents [n]: `dead_fraction`, dead ones, and `auxk_fraction`, those that AuxK revives."""
    training = config.training
    has_auxk = training.auxk_weight(config.sae.activation) > 0
    with jax.set_mesh(state.idle.sharding.mesh):
        share = jax.jit(lambda idle, window: jnp.mean(idle >= window))
        dead, revived = (float(share(state.idle, w)) for w in (training.dead_window(), training.auxk_window()))
    return {"dead_fraction": dead, "auxk_fraction": revived if has_auxk else 0.0}


def about_of(folder: Path, config: Config, state: TrainState) -> dict:
    """What an export of a run's `state` says of itself."""
    manifest, done = folders.read(folder / MANIFEST), int(state.step)
    facts = {"width": state.params.d, "lm": manifest.get("lm")}
    facts["fingerprints"] = identity.saved(manifest, config.lm.process_weights)
    facts |= {"hook_out": manifest["hook_out"]} if "hook_out" in manifest else {}
    # Version 0.1 did not note the hook point.
    facts["hook"] = manifest["hook"] if "hook" in manifest else _hook(config)
    summary = {"step": done, "tokens": done * config.training.batch.batch_size} | idle_fractions(state, config)
    return about(config, facts, float(state.mse_scale), summary)


def _hook(config: Config) -> str | tuple[str, ...] | None:
    if config.lm.hook is not None or config.data.activations is not None:
        return config.lm.hook
    return default_hook(read_config(find_folder(config.lm.lm)).n_layer)
