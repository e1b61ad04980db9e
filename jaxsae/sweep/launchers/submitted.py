"""Jobs that submitit hands to a cluster: what the launchers of it share."""

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.io import python
from jaxsae.sweep import folder as folders
from jaxsae.sweep import job
from jaxsae.sweep.launchers.interface import Work
from jaxsae.sweep.process import Worker
from jaxsae.sweep.shares import Share

# Jobs that were told to stop have this long to save; schedulers give them less.
STOP_WITHIN_S = 120


@dataclass
class Task:
    """A job as submitit calls it, on the machine that it got.

    It lets a worker do the job, which saves and ends if this process does, or if it gets a signal of its own.
    """

    out: str
    names: list[str]
    train: str
    share: Share

    def __call__(self):
        self._worker = Worker(Path(self.out), self.train, self.share)
        self._worker.give(self.names)
        if self._worker.take():
            self._worker.stop()
            self._worker.wait()

    def checkpoint(self):
        """What submitit calls when the time of a job is over, or another one takes its place: save, and queue again."""
        from submitit.helpers import DelayedSubmission

        self._worker.stop()
        self._worker.wait()
        return DelayedSubmission(Task(self.out, self.names, self.train, self.share))


class Submitted:
    """Jobs of an executor of submitit."""

    def __init__(self, work: Work, executor, at_once: int, shares: Callable[[int], Share] = lambda slot: Share()):
        """`at_once` jobs are submitted at a time, the one in each slot with its share of the machine."""
        self._work, self._executor, self._shares = work, executor, shares
        self._waiting, self._jobs = deque(work.jobs), {}  # {slot: (job, names)}
        self.at_once = max(1, min(at_once, len(work.jobs)))
        self._free = deque(range(self.at_once))

    def poll(self, seconds: float) -> bool:
        while self._waiting and self._free:
            slot, names = self._free.popleft(), self._waiting.popleft()
            task = Task(str(self._work.out), names, self._work.train, self._shares(slot))
            self._jobs[slot] = (self._executor.submit(task), names)
        finished = [slot for slot, (submitted, _) in self._jobs.items() if submitted.done()]
        for slot in finished:
            self._note(*self._jobs.pop(slot))
            self._free.append(slot)
        if not finished:
            time.sleep(seconds)
        return bool(self._jobs or self._waiting)

    def in_hand(self) -> set[str]:
        return {name for submitted, names in self._jobs.values() if submitted.state == "RUNNING" for name in names}

    def stop(self):
        for submitted, _ in self._jobs.values():
            submitted.cancel(check=False)
        until = time.monotonic() + STOP_WITHIN_S
        while time.monotonic() < until and not all(submitted.done() for submitted, _ in self._jobs.values()):
            time.sleep(0.2)
        # What submitit has ended may have left a worker that still saves.
        for _, names in self._jobs.values():
            for name in names:
                job.wait_free(self._work.out / name, until - time.monotonic())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for submitted, _ in self._jobs.values():
            with suppress(Exception):
                # Another signal would end one that saves.
                if not submitted.done():
                    submitted.cancel(check=False)

    def _note(self, submitted, names: list[str]):
        """Note why a job failed whose process could not do that itself."""
        try:
            submitted.result()
        except Exception as error:  # whatever the job raised, or submitit because there is no result
            for name in names:
                if folders.state(self._work.out, name) not in (folders.DONE, folders.FAILED):
                    reason = f"its job {submitted.job_id} ended: {type(error).__name__}: {error}"
                    folders.note_failure(self._work.out, name, reason)


def executor(kind: str, out: Path):
    """An executor of submitit, SlurmExecutor or LocalExecutor, whose files go into the folder of the sweep.

    Raises BadInput if submitit is not installed, or does not find its cluster.
    """
    try:
        import submitit
    except ImportError as error:
        raise BadInput('this launcher needs submitit: pip install "jaxsae[sweep]"') from error
    # Jobs begin with this environment, and with a module of this package.
    os.environ |= python.environment()
    try:
        return getattr(submitit, kind)(folder=(out / folders.OWN / "submitit").resolve(), max_num_timeout=1_000)
    except RuntimeError as error:
        raise BadInput(f"--launcher slurm finds no Slurm here: {error}") from error
