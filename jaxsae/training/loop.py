"""The training loop: steps, a progress bar, log rows, checkpoints, and stopping cleanly when a signal asks."""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable

import jax
import numpy as np
from tqdm import tqdm

from jaxsae.errors import Interrupted
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.logs import LogConfig, Logs
from jaxsae.training.step import TrainState

# Steps that may be under way on the device before their metrics are waited for.
AHEAD = 4


class Diverged(Exception):
    """The loss is no longer a number."""


def train(
    state: TrainState,
    batches: Iterable[jax.Array],
    step: Callable,
    total: int,
    tokens_per_step: int,
    checkpoints: Checkpoints,
    logs: Logs,
    config: LogConfig,
) -> tuple[TrainState, float]:
    """Run `step(state, batch) -> (state, metrics)` to step `total`; the state at the end and the seconds it took.

    On SIGTERM or Ctrl-C the state is saved and Interrupted raised; a second signal stops at once.
    """
    start = done = int(state.step)
    if start >= total:
        return state, 0.0
    pending, window = deque(), []
    began = time.monotonic()
    with _Signals() as signals, _bar(total, start, tokens_per_step) as bar:
        for batch in batches:
            state, metrics = step(state, batch)
            done += 1
            pending.append(metrics)
            if len(pending) > AHEAD or done == total:
                while len(pending) > (0 if done == total else AHEAD):
                    window.append(jax.device_get(pending.popleft()))
                bar.update(tokens_per_step * (done - len(pending)) - bar.n)
            if done % config.log_every == 0 or done == total:
                window += [jax.device_get(m) for m in pending]
                pending.clear()
                row = {name: float(np.mean([m[name] for m in window])) for name in window[0]}
                seconds = time.monotonic() - began
                rate = (done - start) * tokens_per_step / seconds
                logs.write({"step": done, "tokens": done * tokens_per_step, **row, "tokens_per_second": rate})
                bar.set_postfix(nmse=f"{row['nmse']:.3f}", dead=f"{row['dead_fraction']:.1%}", refresh=False)
                window = []
                if not np.isfinite(row["loss"]):
                    raise Diverged(
                        f"the loss is {row['loss']} at step {done}: lower --lr; "
                        f"checkpoints up to step {max(checkpoints.steps(), default=0)} are kept"
                    )
            if done % config.checkpoint_every == 0 or done == total or signals.received:
                checkpoints.save(state)
            if signals.received:
                checkpoints.wait()
                name = signal.Signals(signals.received).name
                raise Interrupted(f"{name}: saved at step {done} of {total}", 128 + signals.received)
        checkpoints.wait()
    return state, time.monotonic() - began


def _bar(total: int, start: int, tokens_per_step: int):
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total * tokens_per_step,
        initial=start * tokens_per_step,
        unit="tok",
        unit_scale=True,
        desc="training",
        disable=jax.process_index() != 0,
        # In a log file every refresh is a line's worth of text.
        mininterval=0.5 if terminal else 15,
        smoothing=0.1,
    )


class _Signals:
    """Remembers SIGTERM and SIGINT instead of dying of them; the second one is not caught."""

    received = 0

    def __enter__(self):
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not the main thread: the program around it handles signals
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        del frame
        self.received = number
        signal.signal(number, self._before[number])
