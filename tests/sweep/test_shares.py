"""What each of several processes gets of a machine."""

import os
import subprocess
import sys

import pytest

from jaxsae.config import Config, with_fields
from jaxsae.errors import BadInput
from jaxsae.sweep import shares as module
from jaxsae.sweep.shares import Machine, Share, default_workers, machine, shares


def test_cores_are_divided():
    here = Machine(cores=(0, 1, 2, 3, 4))
    assert [share.cores for share in shares(2, here)] == [(0, 2, 4), (1, 3)]
    assert shares(1, here) == [Share()], "a process alone has the machine"
    assert [share.cores for share in shares(3, Machine(cores=(0, 1)))] == [(0,), (1,), (0, 1)]
    assert default_workers(here, []) == 1 and default_workers(Machine(cores=tuple(range(64))), []) == 16


def test_gpus_are_divided_or_shared():
    here = Machine(cores=(0, 1, 2, 3), gpus=("0", "2", "5", "7"))
    visible = lambda workers, here: [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares(workers, here, {})]
    assert visible(4, here) == ["0", "2", "5", "7"] and visible(2, here) == ["0,2", "5,7"]
    assert shares(1, here)[0].environment == {}
    three = shares(3, Machine(gpus=("4",)), {})
    expected = {"CUDA_VISIBLE_DEVICES": "4", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"}
    assert [share.environment for share in three] == [expected] * 3
    own = shares(2, Machine(gpus=("4",)), {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})
    assert own[0].environment == {"CUDA_VISIBLE_DEVICES": "4"}, "who says how memory is taken is left alone"
    assert default_workers(here, [Config()]) == 4
    assert default_workers(here, [Config(), with_fields(Config(), mesh=(1, 2))]) == 2


def test_a_chip_of_a_tpu_belongs_to_one_process():
    here = Machine(chips=("0", "1", "2", "3"))
    one, *_, last = shares(4, here)
    assert one.environment == {
        "TPU_VISIBLE_CHIPS": "0",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    assert last.environment["TPU_VISIBLE_CHIPS"] == "3"
    assert shares(2, here)[1].environment["TPU_VISIBLE_CHIPS"] == "2,3"
    assert shares(1, here)[0].environment == {}
    with pytest.raises(BadInput, match="--workers is 8, and this host has 4 TPU chips: allowed are 1, 2, 4"):
        shares(8, here)


def test_the_environment_says_what_there_is(monkeypatch):
    monkeypatch.setattr(module, "_nvidia", lambda: ("0", "1"))
    monkeypatch.setattr(module, "_tpu_devices", list)
    assert machine({}).gpus == ("0", "1") and not machine({}).chips
    assert machine({"CUDA_VISIBLE_DEVICES": "3, 5"}).gpus == ("3", "5")
    assert machine({"CUDA_VISIBLE_DEVICES": "-1"}).gpus == () == machine({"CUDA_VISIBLE_DEVICES": ""}).gpus
    assert machine({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "3"}).gpus == ()
    amd = machine({"HIP_VISIBLE_DEVICES": "1,2"})
    assert shares(2, amd, {})[1].environment == {"HIP_VISIBLE_DEVICES": "2"}
    monkeypatch.setattr(module, "_tpu_devices", lambda: ["/dev/accel0", "/dev/accel1"])
    assert machine({}).chips == ("0", "1") and machine({"TPU_VISIBLE_CHIPS": "1"}).chips == ("1",)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity of cores")
def test_a_worker_has_its_cores_from_the_start():
    """XLA makes as many threads as the process has cores when it starts."""
    core = min(os.sched_getaffinity(0))
    from jaxsae.sweep.process import START

    script = START.replace("from jaxsae.sweep.worker import main", "main = lambda *_: print(os.sched_getaffinity(0))")
    done = subprocess.run([sys.executable, "-c", script, "out", "train", str(core)], capture_output=True, text=True)
    assert done.stdout.strip() == f"{{{core}}}", done.stderr
