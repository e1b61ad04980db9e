"""How compare_peers.py and quality.py talk to workers: a line of JSON to a worker's stdin, a line of JSON back.

Only the standard library is used: workers run in environments where there is nothing of jaxsae's.

    {"build": settings}  ->  {"device": ..., "versions": {...}}
    {"steps": count}     ->  {"ms": [...], "cpu_ms": [...], "losses": [...], "peak_rss_mb": ..., "device_peak_mb": ...}
    {"train": settings}  ->  what the module's train(settings) returns, and {"versions": {...}}
                             or {"error": message} from any, after which the worker ends
"""

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class WorkerFailed(Exception):
    """A worker that raised, or ended without an answer."""


class Built(NamedTuple):
    """What a worker's build(settings) returns."""

    step: Callable[[], float]
    """Trains one step to its end, and returns its loss."""
    device: str
    device_peak_mb: Callable[[], float | None] = lambda: None
    """Most memory of the device in use so far; None where that is the process's own."""


class Worker:
    """The parent's end: a process that serves a module and waits idle between the requests."""

    def __init__(self, module: str, python: str = sys.executable, env: dict[str, str] = {}):
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers", module],
            cwd=ROOT,
            env=os.environ | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def build(self, settings: dict) -> dict:
        return self._ask({"build": settings})

    def steps(self, count: int) -> dict:
        return self._ask({"steps": count})

    def train(self, settings: dict) -> dict:
        return self._ask({"train": settings})

    def close(self):
        """End the process and wait for that, so that its memory is free for the next."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def _ask(self, request: dict) -> dict:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerFailed(f"ended with status {self._process.wait()}: {self._tail()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def _tail(self) -> str:
        self._said.seek(0)
        return " / ".join(self._said.read().splitlines()[-3:]) or "it said nothing"


def serve(module: str):
    """The worker's end: answer until stdin ends, by `build` or `train` of a module; its PACKAGES names the library
    first.
    """
    # Libraries print to stdout, some when imported: from here on that goes to stderr, and only answers to the parent.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    built = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "build" in request:
                worker = importlib.import_module(module)
                built = worker.build(request["build"])
                answer = {"device": built.device, "versions": _versions(worker)}
            elif "train" in request:
                worker = importlib.import_module(module)
                answer = worker.train(request["train"]) | {"versions": _versions(worker)}
            else:
                answer = _timed(built, request["steps"])
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        if "error" in answer:
            sys.exit(1)


def _versions(worker) -> dict[str, str]:
    return {name: metadata.version(name) for name in worker.PACKAGES}


def _timed(built: Built, count: int) -> dict:
    ms, cpu_ms, losses = [], [], []
    for _ in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        losses.append(built.step())
        ms.append(1e3 * (time.perf_counter() - wall))
        cpu_ms.append(1e3 * (time.process_time() - cpu))
    return {
        "ms": ms,
        "cpu_ms": cpu_ms,
        "losses": losses,
        "peak_rss_mb": _peak_rss_mb(),
        "device_peak_mb": built.device_peak_mb(),
    }


def _peak_rss_mb() -> float:
    """Most memory that this process had resident, its imports included."""
    try:
        # getrusage also counts what the parent had when it started us.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 * 1.024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024
