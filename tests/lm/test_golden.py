"""Logits and every hook point of the tiny model against PyTorch's, in float32 (make_golden.py).

The peers' float64 goldens of test_parity.py are sharper, but lie outside the repository.
"""

import jax
import numpy as np
import pytest

from jaxsae import lm as lms
from lm import tiny

# The two differ by 2.1e-6 at most on a CPU (activations are of size 1, logits of up to 4.2).
ATOL = 1e-4


@pytest.fixture(scope="module")
def golden():
    return np.load(tiny.FOLDER / "golden.npz")


@pytest.fixture(scope="module")
def captured(golden):
    capture = jax.jit(lambda lm, tokens: lms.capture(lm, tokens, tiny.HOOKS))
    return capture(tiny.model(), golden["tokens"])


def test_golden_holds_every_hook_point(golden):
    assert set(golden.files) == {"tokens", "logits", *tiny.HOOKS}


def test_logits_equal_torch(golden, captured):
    np.testing.assert_allclose(captured[1], golden["logits"], atol=ATOL, rtol=0)


@pytest.mark.parametrize("hook", tiny.HOOKS)
def test_activations_equal_torch(golden, captured, hook):
    assert captured[0][hook].dtype == np.float32
    np.testing.assert_allclose(captured[0][hook], golden[hook], atol=ATOL, rtol=0)
