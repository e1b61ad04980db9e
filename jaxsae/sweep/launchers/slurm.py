"""Jobs of a Slurm cluster, through submitit. A job whose time is over saves and goes into the queue again."""

import shutil
from dataclasses import dataclass

from jaxsae.errors import BadInput
from jaxsae.sweep.launchers.interface import Launcher, Work
from jaxsae.sweep.launchers.submitted import Submitted, executor


@dataclass(frozen=True)
class SlurmConfig:
    partition: str | None = None
    """Partition; default: the cluster's own."""
    account: str | None = None
    """Account that is charged; default: the user's own."""
    qos: str | None = None
    """Quality of service; default: the cluster's own."""
    hours: float = 4.0
    """Longest time of a job. It saves before, and a new one resumes it."""
    gpus: int = 1
    """GPUs of a job; 0: none."""
    cpus: int = 8
    """Cores of a job."""
    memory_gb: int = 32
    """Memory of a job."""
    setup: tuple[str, ...] = ()
    """Shell commands before a job, such as "module load cuda"."""
    options: tuple[str, ...] = ()
    """More options of sbatch, NAME=VALUE, such as constraint=h100."""

    def __post_init__(self):
        if not self.hours > 0:
            raise BadInput(f"--slurm.hours is {self.hours}: give more than 0")
        for name, least in (("gpus", 0), ("cpus", 1), ("memory_gb", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"--slurm.{name.replace('_', '-')} is {getattr(self, name)}: give at least {least}")
        if bad := [option for option in self.options if "=" not in option]:
            raise BadInput(f"--slurm.options has {bad[0]}: give NAME=VALUE, such as constraint=h100")


def start(work: Work, config: SlurmConfig) -> Submitted:
    if shutil.which("sbatch") is None:
        raise BadInput("--launcher slurm finds no sbatch here: start it on a login node, or take --launcher print")
    jobs = executor("SlurmExecutor", work.out)
    named = {"partition": config.partition, "account": config.account, "qos": config.qos}
    jobs.update_parameters(
        job_name=work.out.name,
        time=max(1, round(config.hours * 60)),
        cpus_per_task=config.cpus,
        mem=f"{config.memory_gb}GB",
        ntasks_per_node=1,
        nodes=1,
        setup=list(config.setup),
        additional_parameters=dict(option.split("=", 1) for option in config.options),
        **({"gpus_per_node": config.gpus} if config.gpus else {}),
        **{name: value for name, value in named.items() if value is not None},
    )
    return Submitted(work, jobs, work.workers or len(work.jobs))


LAUNCHER = Launcher(start, SlurmConfig)
