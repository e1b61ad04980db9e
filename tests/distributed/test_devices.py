"""How many devices a process should see."""

import pytest

from jaxsae.distributed import devices, processes
from jaxsae.distributed.processes import DistributedConfig
from jaxsae.errors import BadInput

EIGHT = {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
# name: (environment, platform, devices that the process sees, how many it should see if these are too few)
CASES = {
    "one Slurm task per node sees one of eight GPUs": (EIGHT | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, "gpu", 1, 8),
    "a task for each GPU": (EIGHT | {"SLURM_STEP_TASKS_PER_NODE": "8(x4)"}, "gpu", 1, None),
    "two tasks of four": (EIGHT | {"SLURM_STEP_TASKS_PER_NODE": "2"}, "gpu", 1, 4),
    "another number of tasks on this node": (
        EIGHT | {"SLURM_STEP_TASKS_PER_NODE": "8(x2),1", "SLURM_NODEID": "2"},
        "gpu",
        1,
        8,
    ),
    "GPUs of a task": (EIGHT | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_GPUS_PER_TASK": "a100:4"}, "gpu", 1, 4),
    "all of them": (EIGHT | {"SLURM_STEP_TASKS_PER_NODE": "1"}, "gpu", 8, None),
    "fewer on purpose": (EIGHT | {"CUDA_VISIBLE_DEVICES": "3"}, "gpu", 1, None),
    "fewer on purpose, for JAX alone": (EIGHT | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, "gpu", 2, None),
    "not all that were asked for": (EIGHT | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, "gpu", 1, 2),
    "one Open MPI process": ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "gpu", 1, 4),
    "four Open MPI processes": ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "gpu", 1, None),
    "nobody says": ({}, "gpu", 1, None),
    "a CPU in a job with GPUs": (EIGHT, "cpu", 1, None),
    "two of four TPU chips": ({"TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1"}, "tpu", 2, 4),
    "chips of two devices": ({"TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1"}, "tpu", 8, None),
    "a TPU of which nobody says": ({"TPU_CHIPS_PER_PROCESS_BOUNDS": ""}, "tpu", 1, None),
}


@pytest.mark.parametrize("environment, platform, count, due", CASES.values(), ids=CASES)
def test_fewer_devices_than_the_job_has(environment, platform, count, due):
    message = devices.lacking(environment, platform, count)
    assert bool(message) == (due is not None)
    if due is not None:
        assert f"sees {count} of the {due} devices" in message
        variable = "TPU_CHIPS_PER_PROCESS_BOUNDS" if platform == "tpu" else "JAX_LOCAL_DEVICE_IDS"
        assert variable in message and (platform == "tpu" or ",".join(map(str, range(due))) in message)


def test_a_process_that_sees_fewer_devices_than_the_job_has_does_not_start(monkeypatch):
    monkeypatch.setattr(devices, "lacking", lambda environment, platform, count: f"{platform} {count}")
    with pytest.raises(BadInput, match="cpu 8"):
        processes.start(DistributedConfig())
