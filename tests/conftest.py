"""Eight simulated devices for every test, and where the real data lies."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

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
