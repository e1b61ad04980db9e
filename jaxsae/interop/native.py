"""jaxsae's own format: `sae.safetensors` holds the arrays, `config.json` beside it what they mean.

The safetensors header carries the same text as config.json, so the file alone is enough to load it.
"""

import dataclasses
import json
from pathlib import Path

from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.interop.interface import Format, Given
from jaxsae.io import atomic, safetensors_rows
from jaxsae.sae.types import SAE, Spec

WEIGHTS, CONFIG = "sae.safetensors", "config.json"
# Version 2 holds the configuration in `about`; version 1 is read too.
VERSION = 2
NAME = "jaxsae-"
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")
# Those that not every autoencoder has.
OPTIONAL = ("b_in", "W_skip", "scale_out")


def save(sae: SAE, folder: Path, about: dict):
    """Write sae.safetensors and config.json. `about` is what `describe` returns: hook, model, training facts.

    With several processes, all of them call this and the primary one writes.
    """
    arrays = {name: getattr(sae, name) for name in ARRAYS} | {f"extra.{k}": v for k, v in sae.extra.items()}
    arrays |= {name: getattr(sae, name) for name in OPTIONAL if getattr(sae, name) is not None}
    document = {"format": f"{NAME}{VERSION}", "spec": dataclasses.asdict(sae.spec), "about": about}
    text = json.dumps(document, indent=1, sort_keys=True)
    if not processes.is_primary():
        safetensors_rows.write(None, arrays, {"jaxsae": text})
        return
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / WEIGHTS, lambda path: safetensors_rows.write(path, arrays, {"jaxsae": text}))
    atomic.write_text(folder / CONFIG, text + "\n")


def write(sae: SAE, about: dict, folder: Path) -> list[str]:
    """`save` as formats have it: there is nothing that it cannot say."""
    save(sae, folder, {name: value for name, value in about.items() if name != "spec"})
    return []


def find(path: Path) -> Path | None:
    """The weights in a run, in an exported folder, or the file itself."""
    if path.is_file():
        return path if path.suffix == ".safetensors" else None
    return next((file for file in (path / WEIGHTS, path / "sae" / WEIGHTS) if file.is_file()), None)


def read(file: Path, given: Given) -> tuple[SAE, dict]:
    """An autoencoder whose arrays are read when they are indexed, and what it says of itself."""
    document = _document(file)
    spec, tensors = _spec(document, file), safetensors_rows.read(file)
    if missing := [name for name in ARRAYS if name not in tensors]:
        raise BadInput(f"{file} lacks {', '.join(missing)}: an autoencoder has {', '.join(ARRAYS)}")
    extra = {name.removeprefix("extra."): rows for name, rows in tensors.items() if name.startswith("extra.")}
    if unknown := [name for name in tensors if name not in (*ARRAYS, *OPTIONAL) and not name.startswith("extra.")]:
        raise BadInput(f"{file} holds {', '.join(unknown)}, which this version of jaxsae does not know")
    sae = SAE(*(tensors[name] for name in ARRAYS), spec, extra, *map(tensors.get, OPTIONAL))
    about = document.get("about", {})
    places = given.places(about.get("hook"), about.get("hook_out"), about.get("lm"), file)
    return sae, {**about, **{name: value for name, value in places.items() if value}, "spec": document["spec"]}


def _document(file: Path) -> dict:
    text = safetensors_rows.metadata(file).get("jaxsae")
    if text is None and (file.parent / CONFIG).is_file():
        text = (file.parent / CONFIG).read_text()
    try:
        document = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise BadInput(f"{file.parent / CONFIG} is not JSON: {error}") from error
    return document if isinstance(document, dict) and isinstance(document.get("spec", {}), dict) else {}


def _spec(document: dict, file: Path) -> Spec:
    spec, known = document.get("spec", {}), {f.name for f in dataclasses.fields(Spec)}
    # Fields with a default were added later; older files lack them and mean the default.
    needed = [f.name for f in dataclasses.fields(Spec) if f.default is dataclasses.MISSING]
    missing = [f"spec.{name}" for name in needed if name not in spec]
    version = str(document.get("format", "")).removeprefix(NAME)
    if not version.isdecimal():
        missing.append(f'"format": "{NAME}{VERSION}"')
    elif int(version) > VERSION:
        raise BadInput(
            f"{file} has format {NAME}{version}, and this jaxsae reads up to {NAME}{VERSION}: it was written by a "
            "newer version, so install that"
        )
    if missing:
        raise BadInput(
            f"{file} does not say what its arrays mean, and nothing is guessed: "
            f"{CONFIG} beside it must say {', '.join(missing)}"
        )
    if unknown := [name for name in spec if name not in known]:
        raise BadInput(
            f"{file} has spec.{unknown[0]} = {spec[unknown[0]]!r}, which this version of jaxsae does not know: it "
            "would compute something else; install the version that wrote it"
        )
    return Spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()})


FORMAT = Format(find, read, write, (WEIGHTS, CONFIG))
