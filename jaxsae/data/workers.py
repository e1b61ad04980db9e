"""Processes that tokenise shards, each with one core.

They are started by a command of their own, and neither by fork (JAX has threads) nor by multiprocessing's spawn, which
runs the user's script again and imports with it what tokenising does not need. A worker ends when its standard input
does, however the process that started it came to its end.
"""

import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from jaxsae.data import shards
from jaxsae.data.shards import Facts, Shard
from jaxsae.io import python

# Beyond these, one process cannot read text fast enough.
MOST = 32


def usable_cores() -> int:
    """The processes that are started by default."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


class Workers:
    """Tokenise shards into a folder, `count` at once: with one, in this process."""

    def __init__(self, count: int, folder: Path, tokenizer):
        self.count, self.folder, self.tokenizer = count, folder, tokenizer
        self.threads, self.idle, self.started = None, queue.SimpleQueue(), []

    def __enter__(self):
        if self.count > 1:
            self.threads = ThreadPoolExecutor(self.count)
        return self

    def __exit__(self, kind, error, trace):
        if self.threads is not None:
            if kind is not None:
                for process in self.started:
                    process.kill()
            # What runs is finished, because a later call can use it.
            self.threads.shutdown(cancel_futures=True)
            for process in self.started:
                process.stdin.close()
                process.wait()
                process.stdout.close()

    def submit(self, shard: Shard) -> Callable[[], Facts]:
        """Begin with a shard; returns what waits for its facts, and raises what went wrong."""
        if self.threads is None:
            facts = shards.write(self.folder, shard, self.tokenizer)
            return lambda: facts
        future: Future = self.threads.submit(self._work, shard)
        return future.result

    def _work(self, shard: Shard) -> Facts:
        try:
            process = self.idle.get_nowait()
        except queue.Empty:
            process = self._start()
        try:
            pickle.dump(shard, process.stdin)
            process.stdin.flush()
            result = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise RuntimeError(
                f"a process that tokenises ended with status {process.wait()}: if memory is short, give fewer with "
                "--data-processes; what was tokenised is kept"
            ) from error
        self.idle.put(process)
        if isinstance(result, Exception):
            raise result
        return result

    def _start(self) -> subprocess.Popen:
        environment = python.environment() | {"TOKENIZERS_PARALLELISM": "false"}
        command = python.command("-c", "from jaxsae.data import workers; workers.main()")
        pipe = subprocess.PIPE
        # In a session of its own, so that Ctrl-C reaches the process that tidies up, and only that.
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        self.started.append(process)
        pickle.dump((self.folder, self.tokenizer), process.stdin)
        return process


def main():
    """A worker: reads shards from standard input until that ends, and writes their facts, or what went wrong."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not come between
    try:
        folder, tokenizer = pickle.load(sys.stdin.buffer)
        # Pickling loses that special tokens in texts are text; making the record sets it.
        tokenizer = tokenizer and replace(tokenizer)
        while True:
            shard = pickle.load(sys.stdin.buffer)
            try:
                result = shards.write(folder, shard, tokenizer)
            except Exception as error:
                result = error
            pickle.dump(result, results)
            results.flush()
    except (EOFError, BrokenPipeError):
        pass
