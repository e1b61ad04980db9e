"""Processes on this machine, each on its share of the cores or devices."""

from collections import deque
from multiprocessing import connection

from jaxsae.flags import NoFlags
from jaxsae.sweep.launchers.interface import Launcher, Work
from jaxsae.sweep.process import Worker
from jaxsae.sweep.shares import default_workers, machine, shares


class Workers:
    """Several workers, each with a job in hand. One whose process is gone is replaced."""

    def __init__(self, work: Work, config: NoFlags):
        here = machine()
        workers = work.workers or default_workers(here, work.configs.values())
        self.at_once = max(1, min(workers, len(work.jobs)))
        self._work, self._jobs = work, deque(work.jobs)
        self._free = deque(shares(self.at_once, here))
        self._workers = {}  # {worker: its share}

    def poll(self, seconds: float) -> bool:
        while self._jobs and self._free:
            share = self._free.popleft()
            worker = Worker(self._work.out, self._work.train, share)
            self._workers[worker] = share
            worker.give(self._jobs.popleft())
        for worker in connection.wait(list(self._workers), seconds):
            alive = worker.take()
            if alive and self._jobs:
                worker.give(self._jobs.popleft())
                continue
            share = self._workers.pop(worker)
            if alive:
                worker.stop()
                worker.wait()
            self._free.append(share)
        return bool(self._workers or self._jobs)

    def in_hand(self) -> set[str]:
        return {name for worker in self._workers for name in worker.names or ()}

    def stop(self):
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self._workers:
            worker.kill()


LAUNCHER = Launcher(Workers)
