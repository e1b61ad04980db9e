"""Eight simulated devices for every test, and where the real data lies."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# What one test compiled, another (or a process that runs tests beside this one, or that a test starts) need not compile
# again.
COMPILED = os.environ.get("JAXSAE_TEST_COMPILED")
if COMPILED is None:
    os.environ["JAXSAE_TEST_COMPILED"] = COMPILED = tempfile.mkdtemp(prefix="jaxsae-compiled-")
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
for name, value in (("jax_compilation_cache_dir", COMPILED), ("jax_persistent_cache_min_compile_time_secs", 0.2)):
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

# Tests compile much and compute little, so code is not optimised for speed. Where the cores are busy, a simulated
# device may wait long for the others; by default XLA aborts after 40 seconds.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=300"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

DATA = Path(os.environ.get("JAXSAE_TEST_DATA", Path(__file__).parents[2] / "shared"))
MESHES = [(1, 1), (8, 1), (1, 8), (2, 4), (4, 2)]


@pytest.fixture
def x64():
    """float64 arrays for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def shared():
    """shared("fixtures/peers/train") -> Path; skips the test where the data is absent."""

    def find(path):
        if not (DATA / path).exists():
            pytest.skip(f"{DATA / path} is absent: set JAXSAE_TEST_DATA")
        return DATA / path

    return find


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """A folder in Hugging Face format with a random GPT-2 (2 layers, width 32, 64 positions) and a byte-level BPE."""
    import json

    import jax.numpy as jnp
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import ByteLevelBPETokenizer

    from jaxsae.data.text import stdlib_files
    from jaxsae.lm.gpt2 import GPT2, GPT2Config
    from jaxsae.lm.weights import to_hf

    folder = tmp_path_factory.mktemp("tiny_lm")
    tokenizer = ByteLevelBPETokenizer()
    sample = [p.read_text("utf-8", errors="replace") for p in stdlib_files()[:20]]
    tokenizer.train_from_iterator(sample, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    config = GPT2Config(size, 64, 32, 2, 2, 128)
    params = GPT2(config).init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    noise = lambda path, x: x + 0.1 * np.random.default_rng(len(str(path))).normal(size=x.shape)
    tensors = {k: v.astype(np.float32) for k, v in to_hf(jax.tree.map_with_path(noise, params), config).items()}
    save_file(tensors, folder / "model.safetensors")
    facts = {"model_type": "gpt2", "vocab_size": size, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    """A text file of 40 documents, about 200 kB."""
    from jaxsae.data.text import stdlib_files

    documents = [p.read_text("utf-8", errors="replace")[:5000] for p in stdlib_files()[:40]]
    path = tmp_path_factory.mktemp("tiny_text") / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(documents))
    return path
