"""What a folder of harvested activations says of itself: harvest.json."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.io import atomic

INDEX = "harvest.json"
FORMAT = 1
# The tensor of token ids in a shard.
TOKENS = "tokens"


@dataclass(frozen=True)
class Harvest:
    """Activations of a language model at some hook points, in shards that hold whole contexts [b, T, d] of each."""

    lm: str  # as --lm names it
    process_weights: bool
    lm_precision: str
    hooks: tuple[str, ...]  # each is a tensor of every shard
    context: int  # T
    dtype: str
    shard_tokens: int
    seed: int | None  # of the order of the contexts, None for that of the text
    text: tuple[str, ...]
    fingerprints: dict[str, str]  # of what was read
    special_tokens: dict[str, int] = field(default_factory=dict)  # {"bos", "eos", "pad"}: those that the model has
    tokens: dict[str, int] = field(default_factory=dict)  # {split: tokens}, as asked for
    shards: dict[str, dict[str, str]] = field(default_factory=dict)  # {file: {tensor: SHA-256}} of finished shards
    complete: bool = False
    lm_dtype: str = "float32"
    format: int = FORMAT


def find(folder: Path) -> Harvest | None:
    """The harvest in a folder, None if it is none. Raises BadInput if its index cannot be read."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text())
        if document["format"] > FORMAT:
            raise BadInput(f"{path} has format {document['format']}, and this jaxsae reads up to {FORMAT}: update it")
        lists = {name: tuple(document[name]) for name in ("hooks", "text")}
        return Harvest(**document | lists)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is not the index of harvested activations: {error}") from error


def write(folder: Path, harvest: Harvest):
    atomic.write_text(folder / INDEX, json.dumps(dataclasses.asdict(harvest), indent=1) + "\n")


def split_of(name: str) -> str:
    """The split, train or held_out, that a shard belongs to, from its name."""
    return name.rpartition("-")[0]


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05}.safetensors"
