"""A worker process (worker.py) as the process sees it that started it."""

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from jaxsae.io import python
from jaxsae.sweep import folder as folders
from jaxsae.sweep.shares import Share

# The cores must be chosen before anything asks how many there are.
# Slurm tells a job that its time is over by SIGUSR2, to all its processes: the one that started this one answers.
START = """import os, signal, sys
if hasattr(signal, "SIGUSR2"):
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
out, train, *cores = sys.argv[1:]
if cores:
    os.sched_setaffinity(0, map(int, cores))
from jaxsae.sweep.worker import main
main(out, train)
"""


class Worker:
    """A process of its own that trains jobs, one after another, on its share of the machine."""

    def __init__(self, out: Path, train: str, share: Share):
        self.out, self.names = out, None
        # What it says before it has a job.
        self._log = out / folders.OWN / "logs" / "workers.log"
        with self._log.open("a") as errors:
            self._process = subprocess.Popen(
                python.command("-c", START, str(out), train, *map(str, share.cores)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**python.environment(), **share.environment},
                # Ctrl-C goes to a whole group of processes: this one tells its workers.
                start_new_session=True,
            )

    def fileno(self) -> int:
        """What becomes readable when the worker has finished its job, or is gone."""
        return self._process.stdout.fileno()

    def give(self, names: Sequence[str]):
        """Let it train these runs together."""
        self.names = list(names)
        try:
            self._process.stdin.write(json.dumps(self.names).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone, which `take` finds

    def take(self) -> bool:
        """Wait until its job is over. False if the process is gone: of what it did not finish is noted why."""
        finished = self._process.stdout.readline() == b"done\n"
        if not finished:
            self._note(self._process.wait())
        self.names = None
        return finished

    def stop(self):
        """Ask it to save and end; it does the same if this process is gone."""
        self._process.stdin.close()

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        return self._process.wait()

    def kill(self):
        """End it here and now; what it has not saved is trained again."""
        self._process.kill()
        self._process.wait()

    def _note(self, status: int):
        if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return  # stopped and saved
        log = folders.log_file(self.out, self.names)
        log = log if log.exists() else self._log
        how = f"exit status {status}"
        if status < 0:
            how = f"killed by {signal.Signals(-status).name}"
            how += ", which the system sends if memory runs out" if -status == signal.SIGKILL else ""
        for name in self.names:
            if folders.state(self.out, name) not in (folders.DONE, folders.FAILED):
                folders.note_failure(self.out, name, f"its process ended: {how}; see {log}")
