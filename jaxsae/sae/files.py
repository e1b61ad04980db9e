"""Autoencoders on disk: `sae.safetensors` holds the arrays, `config.json` beside it what they mean.

The safetensors header carries the same text as config.json, so the file alone is enough to load it.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae import atomic, processes
from jaxsae.errors import BadInput
from jaxsae.mesh import place, shardings
from jaxsae.sae import stream
from jaxsae.sae.struct import SAE, Spec, partition_specs

WEIGHTS, CONFIG, FORMAT = "sae.safetensors", "config.json", "jaxsae-1"
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")


def save(sae: SAE, folder: Path, about: dict):
    """Write sae.safetensors and config.json. `about` is what `describe` returns: hook, model, training facts.

    Where there are several processes, all of them call this and the first one writes.
    """
    arrays = {name: getattr(sae, name) for name in ARRAYS} | {f"extra.{k}": v for k, v in sae.extra.items()}
    text = json.dumps(
        {"format": FORMAT, "spec": dataclasses.asdict(sae.spec), "about": about}, indent=1, sort_keys=True
    )
    if not processes.is_first():
        stream.write(None, arrays, {"jaxsae": text})
        return
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / WEIGHTS, lambda path: stream.write(path, arrays, {"jaxsae": text}))
    atomic.write_text(folder / CONFIG, text + "\n")


def load(path: str | Path, mesh: jax.sharding.Mesh | None = None) -> SAE:
    """An autoencoder from a run folder, an exported folder or a safetensors file.

    On `mesh`, where one is given: then each process reads only what its devices hold. Raises BadInput where there is
    none, or where the file does not say what its arrays mean.
    """
    file = _find(path)
    said = _said(file)
    spec = _spec(said, file)
    tensors = _tensors(file)
    missing = [name for name in ARRAYS if name not in tensors]
    if missing:
        raise BadInput(f"{file} lacks {', '.join(missing)}: an autoencoder has {', '.join(ARRAYS)}")
    extra = {k.removeprefix("extra."): v for k, v in tensors.items() if k.startswith("extra.")}
    sae = SAE(*(tensors[name] for name in ARRAYS), spec, extra)
    if sae.W_enc.ndim != 2 or not (isinstance(spec.k, int) and 1 <= spec.k <= len(sae.W_enc)):
        raise BadInput(f"{file} has W_enc of shape {list(sae.W_enc.shape)} and k = {spec.k!r}: not [n, d] and 1 to n")
    n, d = sae.W_enc.shape
    shapes = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    for name, shape in shapes.items():
        if getattr(sae, name).shape != shape:
            raise BadInput(f"{file} has {name} of shape {list(getattr(sae, name).shape)}, not {list(shape)}")
    if mesh is None:
        return jax.tree.map(lambda rows: jnp.asarray(rows[:]), sae)
    on_mesh = lambda rows, s: place(lambda start, stop: rows[start:stop], rows.shape, rows.dtype, s)
    return jax.tree.map(on_mesh, sae, shardings(mesh, partition_specs(sae)))


def shape(path: str | Path) -> tuple[int, int]:
    """(n, d) of a saved autoencoder, of which nothing else is read."""
    return _tensors(_find(path))["W_enc"].shape


def spec(path: str | Path) -> Spec:
    """The mathematics of a saved autoencoder."""
    file = _find(path)
    return _spec(_said(file), file)


def describe(path: str | Path) -> dict:
    """What is known about a saved autoencoder: its spec, hook, model and training facts, as saved, nothing guessed."""
    file = _find(path)
    said = _said(file)
    _spec(said, file)
    return {**said.get("about", {}), "spec": said["spec"]}


def _find(path: str | Path) -> Path:
    path = Path(path)
    for candidate in (path, path / WEIGHTS, path / "sae" / WEIGHTS):
        if candidate.is_file():
            return candidate
    raise BadInput(f"{path} holds no autoencoder: give a run, a folder with {WEIGHTS}, or a safetensors file")


def _header(file: Path) -> dict:
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            return json.loads(stream.read(size))
    except (ValueError, OverflowError, MemoryError, OSError) as error:
        raise BadInput(f"{file} is not a safetensors file: {error}") from error


def _said(file: Path) -> dict:
    text = _header(file).get("__metadata__", {}).get("jaxsae")
    if text is None and (file.parent / CONFIG).is_file():
        text = (file.parent / CONFIG).read_text()
    try:
        said = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise BadInput(f"{file.parent / CONFIG} is not JSON: {error}") from error
    return said if isinstance(said, dict) and isinstance(said.get("spec", {}), dict) else {}


def _spec(said: dict, file: Path) -> Spec:
    # What has a default came after the first files were written, and they mean it.
    wanted = [f.name for f in dataclasses.fields(Spec) if f.default is dataclasses.MISSING]
    spec = said.get("spec", {})
    missing = [name for name in wanted if name not in spec]
    if missing or said.get("format") != FORMAT:
        missing = [f"spec.{name}" for name in missing] + (
            [] if said.get("format") == FORMAT else [f'"format": "{FORMAT}"']
        )
        raise BadInput(
            f"{file} does not say what its arrays mean, and nothing is guessed: "
            f"{CONFIG} beside it must say {', '.join(missing)}"
        )
    known = {f.name: spec[f.name] for f in dataclasses.fields(Spec) if f.name in spec}
    return Spec(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


class _Rows:
    """A tensor of a safetensors file, of which nothing is read before it is indexed."""

    def __init__(self, tensor):
        self._tensor, self.shape, self.dtype = tensor, tuple(tensor.get_shape()), tensor[:0].dtype
        self.ndim = len(self.shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._tensor[rows]


def _tensors(file: Path) -> dict[str, _Rows]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="np")
        return {name: _Rows(opened.get_slice(name)) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error
