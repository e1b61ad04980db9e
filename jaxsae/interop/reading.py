"""What the readers of other libraries' formats share: documents, and arrays that are all there and no others."""

import json
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.io import torch_files
from jaxsae.sae.types import SAE, Spec


def document(file: Path) -> dict:
    """The object in a JSON or YAML file. Raises BadInput if it holds none."""
    try:
        text = file.read_text("utf-8")
        value = json.loads(text) if file.suffix == ".json" else _yaml(text)
        _count(value)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file} holds no object, but a {type(value).__name__}")
    return value


def _yaml(text: str):
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _count(value, left: int = 100_000) -> int:
    """How many more values there may be after these: in YAML a few lines can mean more than any memory holds."""
    items = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for item in items:
        left = _count(item, left - 1)
    if left < 0:
        raise ValueError("it holds more values than a configuration does")
    return left


def need(document: dict, names: tuple[str, ...], file: Path) -> tuple:
    """The values of `names`, dotted for nested objects. Raises BadInput with all those that are missing."""
    values, missing = [], []
    for name in names:
        value = document
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        values.append(value)
        missing += [name] if value is None else []
    if missing:
        raise BadInput(f"{file} does not say {', '.join(missing)}")
    return tuple(values)


def whole(value, name: str, file: Path) -> int:
    """A number that a document, or an array without axes, gives as a whole one."""
    try:
        number = float(value)
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    said = value if isinstance(value, int | float | str) else f"a {type(value).__name__}"
    raise BadInput(f"{file} says that {name} is {said}: a whole number is needed")


def take(tensors: dict, names: tuple[str, ...], file: Path, may: tuple[str, ...] = ()) -> list[np.ndarray | None]:
    """The arrays called `names` and `may` (None if absent).

    Raises BadInput if one of `names` is missing, or if there are others: they would change what is computed.
    """
    arrays = {name: a for name, a in tensors.items() if isinstance(a, np.ndarray)}
    if missing := [name for name in names if name not in arrays]:
        raise BadInput(f"{file} lacks {', '.join(missing)}: it has {', '.join(map(str, tensors)) or 'nothing'}")
    if unknown := [str(name) for name in tensors if name not in (*names, *may)]:
        raise BadInput(f"{file} holds {', '.join(unknown)}, which jaxsae does not know in this format")
    return [arrays.get(name) for name in (*names, *may)]


def check_axes(file: Path, **arrays):
    """Raises BadInput for an array that has not as many axes as its name says: W two, b one."""
    for name, a in arrays.items():
        axes = 2 if name.startswith("W_") else 1
        if a is not None and a.ndim != axes:
            raise BadInput(f"{file} has {name} of shape {list(a.shape)}, which should have {axes} axes")


def made(spec: Spec, file: Path, W_enc, b_enc, W_dec, b_dec, extra=None, transcoder=False, W_skip=None) -> SAE:
    """The SAE of arrays W_enc [n, d_in], b_enc [n], W_dec [n, d_out], b_dec [d_out], W_skip [d_in, d_out].

    A `transcoder` subtracts nothing from its input. Raises BadInput for arrays that do not belong together.
    """
    check_axes(file, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, W_skip=W_skip)
    b_in = np.zeros(W_enc.shape[1], np.float32) if transcoder else None
    return SAE(W_enc, b_enc, W_dec, b_dec, spec, extra or {}, b_in, W_skip)


def in_float32(sae: SAE) -> SAE:
    """The same with whole arrays of float32, so that what is folded does not round to half precision."""
    return jax.tree.map(lambda a: np.asarray(a, np.float32), sae)


def about(sae: SAE, name: str, places: dict, **facts) -> dict:
    """What `describe` says of an autoencoder of another library."""
    kind = {"transcoder": sae.b_in is not None, "skip": sae.W_skip is not None}
    return {"format": name, **places, "n": sae.n, "d": sae.d, **kind, **facts, "spec": asdict(sae.spec)}


def hub_name(name: str | None) -> str | None:
    """The hub's name of a language model that TransformerLens has a shorter one for."""
    if name == "gpt2-small":
        return "gpt2"
    return f"EleutherAI/{name}" if str(name).startswith(("pythia-", "gpt-neo-")) else name


def only_file(path: Path, pattern: str) -> Path | None:
    """`path` if it is a file of that pattern, or the only one in the folder `path`."""
    if path.is_file():
        return path if path.match(pattern) else None
    files = sorted(path.glob(pattern))
    return files[0] if len(files) == 1 else None


def keys(file: Path) -> set[str]:
    """The keys of the dict in a file of torch.save; none if it holds another object."""
    state = torch_files.load(file)
    return {str(name) for name in state} if isinstance(state, dict) else set()
