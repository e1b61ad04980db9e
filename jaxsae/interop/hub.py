"""Autoencoders by their name on the Hugging Face hub: only the files of one of them are fetched."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from jaxsae.errors import BadInput

NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
DOCUMENTS = (".json", ".yaml")


def is_name(path: str | Path) -> bool:
    """Whether `path` can be the name of a repository, ORGANISATION/NAME, and there is no folder ORGANISATION here."""
    return NAME.fullmatch(str(path)) is not None and not Path(path).parent.exists()


def fetch(name: str, file: str | None, known: Iterable[str]) -> Path:
    """Where the autoencoder in `file` of a repository, a file or a folder (None: its root), lies in the hub's cache.

    Fetched are the `known` files of that folder; of a file, itself and the documents beside it. Raises BadInput if they
    cannot be had.
    """
    from huggingface_hub import snapshot_download

    inside = PurePosixPath(file or ".")
    patterns = [str(inside / pattern) for pattern in known]
    if inside.suffix in (".pt", ".npz", ".safetensors"):
        documents = [inside.parent / pattern for pattern in known if pattern.endswith(DOCUMENTS)]
        patterns = list(map(str, (inside, inside.with_suffix(".yaml"), *documents)))
    try:
        return Path(snapshot_download(name, allow_patterns=patterns)) / (file or "")
    except Exception as error:  # huggingface_hub, httpx and OSError: no network, no such name, no permission
        raise BadInput(f"{name} is neither here nor could it be had from the hub: {error}") from error
