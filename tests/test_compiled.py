"""Compiled programs on disk: where they are kept, and that what someone has set stays."""

import os
import subprocess
import sys

PROGRAM = """
import jax
from jaxsae.run.compiled import keep_compiled
keep_compiled({cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2 + 1)(1.0)
"""


def run(cache, **environment):
    names = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    environment = {name: value for name, value in os.environ.items() if name not in names} | environment
    subprocess.run([sys.executable, "-c", PROGRAM.format(cache=str(cache))], env=environment, check=True)


def test_compiled_programs_are_kept_beside_the_tokens_by_the_kind_of_cpu(tmp_path):
    run(tmp_path / "cache")
    (kind,) = (tmp_path / "cache/compiled").iterdir()
    assert any(kind.iterdir())


def test_a_folder_that_was_chosen_stays(tmp_path):
    run(tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert any((tmp_path / "own").iterdir()) and not (tmp_path / "cache").exists()


def test_programs_for_several_cpu_devices_are_not_kept(tmp_path):
    """From disk they mix up their collectives."""
    run(tmp_path / "cache", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert not (tmp_path / "cache").exists()
