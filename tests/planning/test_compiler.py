"""What is read from the compiler's refusals, and what happens where it says nothing."""

import sys

import pytest

from jaxsae.config import Config
from jaxsae.planning import compiler
from jaxsae.planning.devices import topology


def test_refusals():
    early = "Ran out of memory on HBM, the total memory required for HLO temporaries (18.09G) exceeds available HBM"
    late = """Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded hbm capacity by 4.75G.
  Largest program allocations in hbm:
  1. Size: 4.00G
     Operator: op_name="jit(step)/top_k"
     Shape: f32[8192,131072]{1,0:T(8,128)}
     Unpadded size: 4.00G
  2. Size: 768.0M
     Shape: f32[262144,768]{1,0:T(8,128)}
"""
    assert compiler._needed(early) == int(18.09 * 2**30)
    assert compiler._needed(late) == int(20.5 * 2**30)
    assert compiler._needed("no memory") is None
    assert compiler._named(early) == []
    assert compiler._named(late) == [
        {"bytes": 2**32, "shapes": "f32[8192,131072]"},
        {"bytes": 768 * 2**20, "shapes": "f32[262144,768]"},
    ]


def test_a_compiler_that_dies_is_no_answer(monkeypatch, tmp_path):
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\necho 'libtpu: out of luck' >&2\nexit 9\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    with pytest.raises(RuntimeError, match="status 9 and said: libtpu: out of luck"):
        compiler.compiled(Config(), 64, topology("v5e:2x2"), (1, 1))
