"""Language models from files: a folder in Hugging Face format, a hub name, or the embedded model. Safetensors only; no
torch.
"""

import json
import zlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.io import safetensors_rows
from jaxsae.lm import architecture
from jaxsae.lm import hf as files
from jaxsae.lm.model import LM
from jaxsae.precision import Precision

EMBEDDED = "embedded"
# Numbers that are read at once to be counted into a checksum.
BLOCK = 1 << 24


def load(name: str = EMBEDDED, precision: Precision = "float32", dtype=jnp.float32) -> LM:
    """A language model by name: `embedded`, a folder in Hugging Face format, or a hub name such as `gpt2`.

    `precision` is that of its matrix products, `dtype` that of its parameters. Raises BadInput if the name is neither,
    or if the model does not load or is of no family in architecture.py.
    """
    return on_device(open_model(name, precision), dtype)


def open_model(name: str = EMBEDDED, precision: Precision = "float32") -> LM:
    """What `load` loads, with maps of its files in the place of arrays: NumPy arrays, in the type that they are stored
    in, of which nothing is read before it is used.
    """
    folder = find_folder(name)
    config = read_config(folder, precision)
    family = architecture.of(config)
    params = family.from_hf(_open_tensors(folder), config, folder)
    files.check_shapes(params, family.shapes(config), folder)
    return LM(params, config, str(folder))


def on_device(lm: LM, dtype=jnp.float32) -> LM:
    """`lm` with arrays of JAX's, on its default device."""
    return replace(lm, params=jax.tree.map(lambda x: jnp.array(x, dtype), lm.params))


def find_folder(name: str) -> Path:
    """The folder of the model called `name`, fetched from the hub if it is neither `embedded` nor a folder."""
    if name == EMBEDDED:
        return Path(str(resources.files("jaxsae.lm") / "embedded"))
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BadInput(f"--lm {name}: there is no such folder; allowed are {EMBEDDED}, a folder, or a hub name")
    from huggingface_hub import snapshot_download

    # The formats of other frameworks, and copies of the weights in other layouts, lie beside them on the hub.
    patterns = [
        "config.json",
        "model.safetensors",
        "model-*-of-*.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
    ]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # huggingface_hub, httpx and OSError: no network, no such name, no permission
        raise BadInput(
            f"--lm {name} is neither {EMBEDDED} nor a folder, and could not be had from the hub: {error}"
        ) from error


def read_config(folder: Path, precision: Precision = "float32"):
    """The config, of its family, that the config.json in `folder` states."""
    try:
        hf = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        raise BadInput(f"{folder} is not a model in Hugging Face format, its config.json: {error}") from error
    if not isinstance(hf, dict):
        raise BadInput(f"{folder} is not a model in Hugging Face format, its config.json holds no object: {hf!r}")
    family, known = hf.get("model_type"), tuple(architecture.ARCHITECTURES)
    if family not in known:
        raise BadInput(f"{folder} holds a model of type {family!r}: only {', '.join(known)} are supported")
    # Weights that are stored in a way of their own, and models that bring code of their own.
    files.refuse(hf, ("quantization_config", "auto_map"), folder)
    return architecture.get(family).read_config(hf, folder, precision)


def _open_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of one or sharded safetensors files, as maps of them."""
    index = folder / "model.safetensors.index.json"
    if not index.exists() and not (folder / "model.safetensors").exists():
        raise BadInput(
            f"{folder} has no model.safetensors, and nothing else is read: convert the checkpoint by transformers' "
            "AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER, safe_serialization=True) and "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER), and give --lm FOLDER"
        )
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        tensors = {}
        for name in sorted(names):
            tensors |= safetensors_rows.mapped(folder / name)
        return tensors
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"the weights in {folder} cannot be read (safetensors files are needed): {error}") from error


def checksum(lm: LM) -> int:
    """A number that changes when a model's weights do: of their values as float32, whatever type they are kept in."""
    crc = 0
    for leaf in jax.tree.leaves(lm.params):
        # A part at a time, because the whole may be larger than the memory.
        rows = max(1, BLOCK * len(leaf) // leaf.size) if leaf.ndim else 1
        for start in range(0, len(leaf) if leaf.ndim else 1, rows):
            part = leaf[start : start + rows] if leaf.ndim else leaf
            crc = zlib.crc32(np.ascontiguousarray(part, np.float32), crc)
    return crc
