"""Eight simulated devices for every test, and where the real data lies."""

import gc
import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# What was compiled once need not be compiled again: not by another test, nor by a process that runs tests beside this
# one or that a test starts, nor by the next run. JAX's key holds everything that a program depends on.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jaxsae-tests" / f"jax-{jax.__version__}"
COMPILED = os.environ.setdefault("JAXSAE_TEST_COMPILED", str(CACHE))
OPTIONS = {
    "jax_compilation_cache_dir": COMPILED,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}
for name, value in OPTIONS.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

# Tests compile much and compute little, so code is not optimised for speed, and emitted in the way that compiles in
# two thirds of the time. Where the cores are busy, a simulated device may wait long for the others; by default XLA
# aborts after 40 seconds. A program for several devices that is read from the cache may mix up its collectives where
# the scheduler lets them overlap.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=300"
FLAGS += " --xla_cpu_use_fusion_emitters=false"
FLAGS += " --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"

DATA = Path(os.environ.get("JAXSAE_TEST_DATA", Path(__file__).parents[2] / "shared"))
MESHES = [(1, 1), (8, 1), (1, 8), (2, 4), (4, 2)]


def pytest_sessionstart(session):
    """Keep the compiled programs below 2 GB: the oldest go first."""
    if hasattr(session.config, "workerinput") or not Path(COMPILED).is_dir():
        return
    files = sorted((path for path in Path(COMPILED).iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime)
    excess = sum(path.stat().st_size for path in files) - (2 << 30)
    for path in files:
        if excess <= 0:
            break
        excess -= path.stat().st_size
        path.unlink(missing_ok=True)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_go_with_their_module():
    """JAX keeps programs for the life of a process: a worker that runs all tests would need several gigabytes."""
    yield
    if _resident_bytes() > 0.9e9:
        jax.clear_caches()
        gc.collect()


def _resident_bytes() -> float:
    """The memory of this process; infinite if the platform does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float("inf")


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
    from jaxsae.lm.gpt2 import GPT2, GPT2Config, to_hf

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
