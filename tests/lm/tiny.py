"""The tiny model of golden/, the files of models made from it, and a small tokenizer."""

import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

from jaxsae import lm as lms
from jaxsae.data import text
from jaxsae.lm.hooks import KINDS, RESIDUAL
from jaxsae.lm.tokenizer import END_OF_TEXT, make_tokenizer

FOLDER = Path(__file__).parent / "golden"
LAYERS, WIDTH, VOCABULARY, POSITIONS = 3, 32, 101, 16

HOOKS = [f"blocks.{layer}.{kind}" for layer in range(LAYERS) for kind in KINDS]
RESIDUALS = [f"blocks.{layer}.{kind}" for layer in range(LAYERS) for kind in RESIDUAL]


def model(precision="float32", dtype=jnp.float32):
    return lms.load(str(FOLDER), precision, dtype)


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


def tokenizer(vocab_size):
    """A small byte-level BPE with GPT-2's pre-tokenizer."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([library_text(200_000)], trainer)
    return make_tokenizer(bpe, "tiny")


def library_text(characters):
    """Real English and code: source files of the standard library, joined."""
    return "".join(itertools.islice(text.documents(["stdlib"]), 40))[:characters]


def whole_documents(tokenizer, documents, context):
    """What packing does, plainly: every document tokenised alone and whole, joined, then cut."""
    stream = []
    for document in documents:
        stream += [tokenizer.end_of_text, *tokenizer.encode([document])[0]]
    whole = len(stream) // context * context
    return np.array(stream[:whole]).reshape(-1, context)
