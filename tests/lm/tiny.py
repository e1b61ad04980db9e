"""The tiny model of golden/ and the files of models made from it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxsae import lm as lms
from jaxsae.lm.hooks import KINDS, RESIDUAL

FOLDER = Path(__file__).parent / "golden"
LAYERS, WIDTH, VOCABULARY, POSITIONS = 3, 32, 101, 16

HOOKS = [f"blocks.{layer}.{kind}" for layer in range(LAYERS) for kind in KINDS]
RESIDUALS = [f"blocks.{layer}.{kind}" for layer in range(LAYERS) for kind in RESIDUAL]


def model(products="float32", dtype=jnp.float32):
    return lms.load(str(FOLDER), products, dtype)


def random_tokens(contexts, positions=12, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(VOCABULARY, size=(contexts, positions), dtype=np.int32)


def tensors():
    """Hugging Face's names -> arrays, with the `transformer.` prefix."""
    return load_file(FOLDER / "model.safetensors")


def config(**changes):
    """config.json as a dict; a value of None leaves the entry out."""
    entries = json.loads((FOLDER / "config.json").read_text()) | changes
    return {name: value for name, value in entries.items() if value is not None}


def write(folder, tensors, config):
    """A model in Hugging Face format, of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
