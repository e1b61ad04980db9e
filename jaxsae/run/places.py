"""Where the text, the language model and the activations of a run lie: exports say no place, and find them again.

An export names files and folders as ./NAME. Evaluated without flags, it finds them by their fingerprints: through the
run that it lies in, or where a run or an evaluation on this machine has read the same content before.
"""

import glob
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.data.config import is_synthetic
from jaxsae.data.tokens import default_cache
from jaxsae.errors import BadInput
from jaxsae.io import atomic
from jaxsae.lm.weights import EMBEDDED
from jaxsae.run import identity

# Text sources that begin so go on with a path, or with a name on a hub.
PREFIXES = ("hf:", "tokens:")
# What is looked for: {fingerprint: field of the configuration}.
FIELDS = {"text": "text", "model": "lm", "activations": "activations"}


def without_places(config: Config) -> Config:
    """`config` with every file and folder as ./NAME."""
    return _with_paths(config, lambda path: f"./{os.path.basename(_absolute(path))}")


def remember(config: Config, fingerprints: dict[str, str]):
    """Note in the cache where on this machine that lies which has these fingerprints."""
    values = configs.fields_of(_with_paths(config, _absolute))
    for kind in fingerprints.keys() & FIELDS.keys():
        # A cache that cannot be written is no reason to stop.
        with suppress(OSError):
            note = _note(config.data.cache, kind, fingerprints[kind])
            note.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(note, json.dumps(values[FIELDS[kind]]))


def located(config: Config, fingerprints: dict[str, str], folder: Path) -> Config:
    """`config` of an export in `folder` with the places of what has these fingerprints, as far as they are known."""
    values, run, changes = configs.fields_of(config), _run_around(folder, fingerprints), {}
    for kind in fingerprints.keys() & FIELDS.keys():
        field = FIELDS[kind]
        if any(map(_is_name, _sources(values[field]))):
            found = configs.fields_of(run)[field] if run else _noted(config.data.cache, kind, fingerprints[kind])
            changes |= {field: tuple(found) if field == "text" else found} if found else {}
    return configs.with_fields(config, **changes)


def check_found(config: Config, whose: str):
    """Raises BadInput if a file or folder that `whose`, a run or an export, was trained on is not where it says."""
    lost = {}
    for field in ["activations"] if config.data.activations else ["lm", "text"]:
        # Paths are what comes back changed.
        marked = configs.fields_of(_with_paths(config, lambda path: f"\0{path}"))[field]
        paths = [name.partition("\0")[2] for name in _sources(marked) if "\0" in name]
        gone = [path for path in paths if not _is_here(path)]
        lost |= {configs.flag_of(field): gone} if gone else {}
    if lost:
        names = ", ".join(name for names in lost.values() for name in names)
        flags = " and ".join(lost)
        raise BadInput(f"{whose} was trained on {names}, which is not there: give {flags} with its place now")


def _with_paths(config: Config, change: Callable[[str], str]) -> Config:
    """`config` with `change(path)` in place of every path in it."""
    lm, data, start = config.lm.lm, config.data, config.training.init_from
    made = is_synthetic(data.activations)
    return configs.with_fields(
        config,
        lm=change(lm) if _is_model_folder(lm) else lm,
        text=tuple(map(partial(_changed_source, change=change), data.text)),
        activations=data.activations if made else data.activations and change(data.activations),
        held_out=data.held_out and change(data.held_out),
        init_from=start and change(start),
    )


def _is_model_folder(name: str) -> bool:
    return name != EMBEDDED and (_is_local(name) or name.count("/") > 1)


def _changed_source(source: str, change: Callable[[str], str]) -> str:
    path = _path(source)
    on_a_hub = source.startswith("hf:") and not _is_local(path.partition("#")[0].partition(":")[0])
    is_path = not (source == "stdlib" or source.startswith("tfds:") or on_a_hub)
    return source.removesuffix(path) + change(path) if is_path else source


def _is_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists()


def _path(source: str) -> str:
    return next((source.removeprefix(prefix) for prefix in PREFIXES if source.startswith(prefix)), source)


def _absolute(path: str) -> str:
    """From the working folder; a pattern of names stays one."""
    return os.path.normpath(Path.cwd() / path)


def _sources(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value or ()


def _is_name(source: str) -> bool:
    """Whether an export says no more of a place."""
    return _path(source).startswith("./")


def _is_here(path: str) -> bool:
    """Whether a file or folder is there, or matches a pattern; a split or a column may follow its name."""
    names = (path, path.partition("#")[0], path.partition("#")[0].partition(":")[0])
    return any(Path(name).exists() or glob.glob(name, recursive=True) for name in names)


def _run_around(folder: Path, fingerprints: dict[str, str]) -> Config | None:
    """The configuration of the run that has an export in `folder`, if it read the same."""
    run = folder.absolute().parent
    try:
        config = configs.from_json(run / "config.json")
        manifest = json.loads((run / "manifest.json").read_text())
    except (OSError, ValueError, BadInput):
        return None
    return config if identity.saved(manifest, config.lm.process_weights) == fingerprints else None


def _noted(cache: str | None, kind: str, fingerprint: str) -> str | list[str] | None:
    try:
        found = json.loads(_note(cache, kind, fingerprint).read_text())
    except (OSError, ValueError):
        return None
    paths = [path for path in map(_path, _sources(found)) if os.path.isabs(path)]
    return found if all(map(_is_here, paths)) else None


def _note(cache: str | None, kind: str, fingerprint: str) -> Path:
    return Path(cache or default_cache()) / "places" / f"{kind}-{fingerprint}.json"
