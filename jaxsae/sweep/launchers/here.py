"""This process, one job after another: what the lines of `print` run where runs are trained together."""

from jaxsae.flags import NoFlags
from jaxsae.sweep import job
from jaxsae.sweep.launchers.interface import Launcher, Work


class Here:
    at_once = 1

    def __init__(self, work: Work, config: NoFlags):
        self._work, self._jobs = work, list(work.jobs)

    def poll(self, seconds: float) -> bool:
        if self._jobs:
            job.run(self._work.out, self._jobs.pop(0), self._work.train)
        return bool(self._jobs)

    def in_hand(self) -> set[str]:
        return set()

    def stop(self):
        """Nothing runs elsewhere."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


# Several such processes may work in one folder, on different runs.
LAUNCHER = Launcher(Here, alone=False)
