"""Compiled programs on disk, so that the second run of a kind starts without compiling."""

import hashlib
import platform
from pathlib import Path

import jax

from jaxsae.data.tokens import default_cache

# Bytes that compiled programs may take.
LIMIT = 1 << 30


def keep_compiled(cache: str | None = None) -> None:
    """Let JAX keep what it compiles under `cache` (default: where tokenised text is kept), if it keeps nothing so far.

    JAX names a program by its content, its compiler and its flags, and several processes may share the folder. Code
    for a CPU may use instructions that another one lacks, so every kind of CPU has a folder of its own.

    Nothing is kept for several CPU devices: with jax 0.10, programs for them that come from disk mix up collectives
    that do not depend on each other, and give wrong numbers or wait for ever.
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        return
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path(cache or default_cache()) / "compiled" / _cpu()
        _forget_oldest(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _forget_oldest(folder: Path) -> None:
    """Remove the oldest files beyond LIMIT; one that another process needs meanwhile is compiled again."""
    try:
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir())
        for i, (_, _, path) in enumerate(files):
            if sum(size for _, size, _ in files[i:]) <= LIMIT:
                break
            path.unlink(missing_ok=True)
    except OSError:
        pass  # not there yet, or another process removes the same


def _cpu() -> str:
    """Names the kind of CPU by its architecture and instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    instructions = next(
        (line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor()
    )
    return f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:12]}"
