"""How the processes of a sweep share a machine: cores, GPUs, TPU chips. Nothing here starts JAX's devices."""

import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxsae.config import Config
from jaxsae.errors import BadInput

# Without accelerators, one process for so many cores.
CORES = 4
# Processes that share a GPU leave a little of its memory free.
MEMORY = 0.9
# Chips that one process of a TPU host can have, and their shape.
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}


@dataclass(frozen=True)
class Share:
    """What one process of several may use: cores (empty: all), and what its environment says of devices."""

    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    """What there is to share."""

    cores: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    gpu_variable: str = "CUDA_VISIBLE_DEVICES"
    chips: tuple[str, ...] = ()  # of a TPU host


def machine(environment: Mapping[str, str] = os.environ) -> Machine:
    """The cores and devices that this process may use, as the system and its environment say."""
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not any(name in platforms for name in ("cuda", "gpu", "rocm", "tpu")):
        return Machine(cores)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name in environment:
            listed = tuple(d.strip() for d in environment[name].split(",") if d.strip() not in ("", "-1"))
            return Machine(cores, listed, name)
    if chips := tuple(str(i) for i, _ in enumerate(_tpu_devices())):
        shown = environment.get("TPU_VISIBLE_CHIPS")
        return Machine(cores, chips=tuple(shown.split(",")) if shown else chips)
    return Machine(cores, _nvidia())


def default_workers(here: Machine, configs: Iterable[Config]) -> int:
    """One process for each device, or group of devices if a mesh needs several; else one for every CORES cores."""
    devices = here.chips or here.gpus
    if not devices:
        return max(1, len(here.cores) // CORES)
    needed = max((math.prod(c.training.batch.mesh or (1, 1)) for c in configs), default=1)
    return max(1, len(devices) // needed)


def shares(workers: int, here: Machine, environment: Mapping[str, str] = os.environ) -> list[Share]:
    """What each of so many processes gets; more processes than GPUs share their memory.

    Raises BadInput if there are more processes than TPU chips, which only one process at a time can use.
    """
    cores = [here.cores[i::workers] or here.cores for i in range(workers)] if workers > 1 else [()]
    if here.chips:
        variables = _of_chips(workers, here.chips)
    elif here.gpus and workers > 1:
        variables = _of_gpus(workers, here, environment)
    else:
        variables = [{} for _ in range(workers)]
    return [Share(own, variable) for own, variable in zip(cores, variables)]


def _of_gpus(workers: int, here: Machine, environment: Mapping[str, str]) -> list[dict[str, str]]:
    if workers <= len(here.gpus):
        each = len(here.gpus) // workers
        return [{here.gpu_variable: ",".join(here.gpus[i * each : (i + 1) * each])} for i in range(workers)]
    memory = {}
    if not {"XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"} & set(environment):
        on_one = -(-workers // len(here.gpus))
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{math.floor(100 * MEMORY / on_one) / 100}"}
    return [{here.gpu_variable: here.gpus[i % len(here.gpus)]} | memory for i in range(workers)]


def _of_chips(workers: int, chips: tuple[str, ...]) -> list[dict[str, str]]:
    if workers == 1:
        return [{}]
    each = len(chips) // workers
    if each not in BOUNDS:
        allowed = ", ".join(str(len(chips) // size) for size in sorted(BOUNDS, reverse=True) if len(chips) >= size)
        raise BadInput(f"--workers is {workers}, and this host has {len(chips)} TPU chips: allowed are {allowed}")
    return [
        {
            "TPU_VISIBLE_CHIPS": ",".join(chips[i * each : (i + 1) * each]),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[each],
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
        for i in range(workers)
    ]


def _tpu_devices() -> list[Path]:
    return sorted(Path("/dev").glob("accel[0-9]*")) or sorted(Path("/dev/vfio").glob("[0-9]*"))


def _nvidia() -> tuple[str, ...]:
    """The numbers of the GPUs that the driver shows; none if there is no driver."""
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(listed.split())
