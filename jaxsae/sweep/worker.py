"""A process that trains what it is told, job by job, until nobody tells it any more.

It reads the names of runs from stdin, one JSON list in a line, and answers each with a line on stdout when it is done
with them. The end of stdin means that the process that started it wants no more, or is gone, however it ended: training
then saves and this process ends too.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path

from jaxsae.errors import Interrupted
from jaxsae.sweep import folder as folders
from jaxsae.sweep import job

# After a request to stop, training saves at its next step; what takes longer than this hangs.
STOP_WITHIN_S = 600


def main(out: str, train: str):
    """Work for the sweep in the folder `out`. The exit status is that of `jaxsae train`."""
    jobs, answers = queue.SimpleQueue(), os.fdopen(os.dup(1), "w")
    # What libraries print, on every level, goes to a log; the first lines come before there is a job.
    os.dup2(2, 1)
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda number, frame: sys.exit(128 + number))
    watch = _Watch(jobs)
    while (names := jobs.get()) is not None:
        _print_into(folders.log_file(Path(out), names))
        watch.busy = True
        if watch.ended:
            sys.exit(128 + signal.SIGTERM)
        try:
            job.run(Path(out), names, train)
        except Interrupted as stop:
            print(f"jaxsae: {stop}", file=sys.stderr)
            sys.exit(stop.status)
        watch.busy = False
        _forget_programs()
        answers.write("done\n")
        answers.flush()


class _Watch:
    """Puts jobs from stdin into a queue, and None after its end. A job in hand is told to stop then."""

    busy = ended = False

    def __init__(self, jobs: queue.SimpleQueue):
        threading.Thread(target=self._read, args=(jobs,), daemon=True).start()

    def _read(self, jobs: queue.SimpleQueue):
        for line in sys.stdin:
            jobs.put(json.loads(line))
        jobs.put(None)
        self.ended = True
        if self.busy:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_WITHIN_S)
        os._exit(1)


def _print_into(log: Path):
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def _forget_programs():
    """Every run compiles programs of its own, which JAX would keep for the life of the process."""
    if "jax" in sys.modules:
        import jax

        jax.clear_caches()
