"""How many devices a process should see, by what the scheduler says in its environment."""

import math
import re
from collections.abc import Mapping


def lacking(environment: Mapping[str, str], platform: str, count: int) -> str:
    """What to say if a process that sees `count` devices should have more, by what the scheduler says; else empty.

    Under Slurm and Open MPI, JAX gives each process of --distributed one GPU: eight GPUs want eight processes.
    """
    if platform == "tpu":
        bounds = environment.get("TPU_CHIPS_PER_PROCESS_BOUNDS", "")
        # Some kinds of chips are two devices each.
        due = math.prod(map(int, bounds.split(","))) if re.fullmatch(r"\d+(,\d+)*", bounds) else 0
        fix = "it is what TPU_CHIPS_PER_PROCESS_BOUNDS says; end what else uses the chips, or set it to what is there"
    elif platform == "gpu":
        due = _gpus_due(environment)
        fix = "start one process for each (srun --ntasks-per-node, mpirun --map-by ppr:N:node), or set "
        fix += f"JAX_LOCAL_DEVICE_IDS to those that this process is to use, {','.join(map(str, range(due)))} for all"
    else:
        return ""
    return f"this process sees {count} of the {due} devices that the job gives it: {fix}" if count < due else ""


def _gpus_due(environment: Mapping[str, str]) -> int:
    """How many GPUs a process should see; 0 if nothing says so."""
    number = lambda name: int(found[-1]) if (found := re.findall(r"\d+", environment.get(name, ""))) else 0
    listed = lambda name: len([d for d in environment[name].split(",") if d.strip()]) if name in environment else 0
    for name in ("JAX_LOCAL_DEVICE_IDS", "JAX_CUDA_VISIBLE_DEVICES", "JAX_ROCM_VISIBLE_DEVICES"):
        if environment.get(name, "all") != "all":
            return listed(name)
    # Slurm lists the numbers of tasks by node: 8(x2),4.
    nodes = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(count) for count, times in nodes for _ in range(int(times or 1))]
    node = number("SLURM_NODEID")
    here = number("OMPI_COMM_WORLD_LOCAL_SIZE") or (tasks[node] if node < len(tasks) else 1)
    due = number("SLURM_GPUS_PER_TASK") or number("SLURM_GPUS_ON_NODE") // here
    visible = next((name for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if name in environment), None)
    if visible is None:
        return due
    # Who shows a process fewer devices means it so.
    shown = listed(visible)
    return min(due, shown) if due else shown // here
