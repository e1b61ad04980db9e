"""Jobs of submitit's local executor: on this machine, handed over as those of a cluster are."""

from dataclasses import dataclass

from jaxsae.errors import BadInput
from jaxsae.sweep.launchers.interface import Launcher, Work
from jaxsae.sweep.launchers.submitted import Submitted, executor
from jaxsae.sweep.shares import default_workers, machine, shares


@dataclass(frozen=True)
class ClusterConfig:
    hours: float = 24.0
    """Longest time of a job. It saves before, and a new one resumes it."""

    def __post_init__(self):
        if not self.hours > 0:
            raise BadInput(f"--cluster.hours is {self.hours}: give more than 0")


def start(work: Work, config: ClusterConfig) -> Submitted:
    here = machine()
    at_once = max(1, min(work.workers or default_workers(here, work.configs.values()), len(work.jobs)))
    jobs = executor("LocalExecutor", work.out)
    jobs.update_parameters(timeout_min=config.hours * 60, tasks_per_node=1)
    slots = shares(at_once, here)
    return Submitted(work, jobs, at_once, lambda slot: slots[slot])


LAUNCHER = Launcher(start, ClusterConfig)
