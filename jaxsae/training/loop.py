"""The training loop: steps, a progress bar, log rows, checkpoints, and stopping cleanly when a signal asks.

With several processes, a signal to one stops them all after the same step: with every step they reduce what each was
asked, and read it when they read that step's metrics.
"""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from jaxsae.distributed import processes
from jaxsae.distributed.mesh import place
from jaxsae.errors import Interrupted
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.logs import LogConfig, Logs
from jaxsae.training.step import TrainState

# Steps that may be under way on the device before their metrics are waited for.
AHEAD = 4
# The metric that says which signal a process got.
STOP = "stop"


class Diverged(Exception):
    """The loss or its gradient is no longer finite.

    `useless` is the step whose weights have no finite loss; None if only the gradient is not finite.
    """

    def __init__(self, message: str, useless: int | None):
        super().__init__(message)
        self.useless = useless


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
    """Run `step(state, batch, number) -> (state, metrics)` to step `total`; returns the last state and the seconds.

    On SIGTERM or Ctrl-C, in any process, the state is saved and Interrupted raised; a second signal stops at once.
    Raises Diverged if the loss or its gradient is no longer finite; the newest checkpoint then has a finite loss.
    """
    start = done = int(state.step)
    if start >= total:
        return state, 0.0
    began = time.monotonic()
    with _Signals() as signals, _dropping_useless(checkpoints), _bar(total, start, tokens_per_step) as bar:
        metrics = _Metrics(start, lambda count: _advance(bar, count * tokens_per_step))
        ask = _ask_all(state.step.sharding.mesh) if processes.is_distributed() else None
        for batch in batches:
            done += 1
            state, values = step(state, batch, done)
            metrics.add(values | ({} if ask is None else {STOP: ask(signals.received)}))
            logs_now = done % config.log_every == 0 or done == total
            saves_now = done % config.checkpoint_every == 0 or done == total
            if logs_now or saves_now:
                # Waits for this step: a state is saved only after finite numbers.
                metrics.wait(ahead=0)
            stop = signals.received if ask is None else metrics.stop
            if stop:
                metrics.wait(ahead=0)
            if logs_now:
                row = metrics.mean()
                rate = (done - start) * tokens_per_step / (time.monotonic() - began)
                logs.write({"step": done, "tokens": done * tokens_per_step, **row, "tokens_per_second": rate})
                bar.set_postfix(nmse=f"{row['nmse']:.3f}", dead=f"{row['dead_fraction']:.1%}", refresh=False)
            if saves_now or stop:
                checkpoints.save(state)
            if stop:
                checkpoints.wait()
                name = signal.Signals(stop).name
                raise Interrupted(f"{name}: saved at step {done} of {total}", 128 + stop)
        checkpoints.wait()
    return state, time.monotonic() - began


@contextmanager
def _dropping_useless(checkpoints: Checkpoints):
    try:
        yield
    except Diverged as error:
        if error.useless is not None:
            checkpoints.drop(error.useless)
        raise


def _ask_all(mesh: jax.sharding.Mesh) -> Callable[[int], jax.Array]:
    """ask(signal) -> the largest signal that any process on `mesh` gives, a scalar on its way like a step's metrics."""
    split, count = NamedSharding(mesh, P(mesh.axis_names)), mesh.size
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
    as_array = lambda number: place(lambda a, z: np.full(z - a, number), (count,), np.int32, split)
    nothing = as_array(0)
    return lambda number: largest(as_array(number) if number else nothing)


class _Metrics:
    """The metrics of steps since the last log row; at most AHEAD steps are under way on the device."""

    # The signal that some process got, in the metrics that were waited for.
    stop = 0

    def __init__(self, start: int, on_done: Callable[[int], None]):
        self._pending, self._window, self._step, self._on_done = deque(), [], start, on_done

    def add(self, values: dict):
        self._pending.append(values)
        self.wait(AHEAD)

    def wait(self, ahead: int):
        """Until at most `ahead` steps are under way. Raises Diverged if the loss of one is not a number."""
        while len(self._pending) > ahead:
            values = jax.device_get(self._pending.popleft())
            self.stop = self.stop or int(values.pop(STOP, 0))
            self._on_done(1)
            self._step += 1
            self._window.append(values)
            # The loss is that of the weights before the step, the gradient decides those after it.
            for name in ("loss", "grad_norm"):
                if not np.isfinite(values[name]):
                    raise Diverged(
                        f"{name} became {values[name]} at step {self._step}: start another --run with a lower --lr",
                        self._step - 1 if name == "loss" else None,
                    )

    def mean(self) -> dict[str, float]:
        """The mean row of the window, which starts anew."""
        window, self._window = self._window, []
        return {name: float(np.mean([values[name] for values in window])) for name in window[0]}


def _bar(total: int, start: int, tokens_per_step: int):
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total * tokens_per_step,
        initial=start * tokens_per_step,
        unit="tok",
        unit_scale=True,
        desc="compiling the training step",
        disable=not processes.is_primary(),
        # In a log file every refresh is a line's worth of text.
        mininterval=0.5 if terminal else 15,
        smoothing=0.1,
    )


def _advance(bar: tqdm, tokens: int):
    # The first step has come back, so all is compiled.
    bar.set_description("training", refresh=False)
    bar.update(tokens)


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
