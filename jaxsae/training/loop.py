"""The training loop: steps, a progress bar, log rows, checkpoints, and stopping cleanly when a signal asks.

Several autoencoders may be trained side by side on one stream of batches; a run of one is the usual case.

With several processes, a signal to one stops them all after the same step: with every step they reduce what each was
asked, and read it when they read that step's metrics.
"""

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from jaxsae.data.workers import usable_cores
from jaxsae.distributed import processes
from jaxsae.distributed.mesh import place
from jaxsae.errors import Interrupted
from jaxsae.precision import as_here
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


class Member:
    """One autoencoder in the loop: its state, how it makes a step, and where its numbers and its states are kept."""

    def __init__(self, state: TrainState, step: Callable, checkpoints: Checkpoints, logs: Logs, config: LogConfig):
        """`step(state, batch, number) -> (state, metrics)`."""
        self.state, self.start = state, int(state.step)
        self.error: Diverged | None = None
        """What is wrong with `state`, which the loop then leaves as it is."""
        self.seconds = 0.0
        """From its first step to its last."""
        self.metrics = _Metrics(self.start)
        self._step, self._checkpoints, self._logs, self._config = step, checkpoints, logs, config
        self._began = None

    def advance(self, batch, number: int, last: bool, asked: dict):
        """Make step `number`, with `asked` among its metrics; waits for it if it is saved or logged."""
        self._began = self._began or time.monotonic()
        self.state, values = self._step(self.state, batch, number)
        self.metrics.add(values | asked)
        # A state is saved only after finite numbers.
        self.wait(0 if any(self._due(number, last)) else AHEAD)

    def wait(self, ahead: int):
        """Until at most `ahead` steps are under way."""
        try:
            self.metrics.wait(ahead)
        except Diverged as error:
            self.error = error
        self.seconds = time.monotonic() - self._began

    def keep(self, number: int, last: bool, tokens_per_step: int, stopping: bool) -> dict | None:
        """Log and save what is due after step `number`; returns the row that was logged."""
        logs_now, saves_now = self._due(number, last)
        row = None
        if logs_now:
            row = self.metrics.mean()
            rate = (number - self.start) * tokens_per_step / self.seconds
            self._logs.write({"step": number, "tokens": number * tokens_per_step, **row, "tokens_per_second": rate})
        if saves_now or stopping:
            self._checkpoints.save(self.state)
        return row

    def drop_useless(self):
        """Remove the checkpoint of weights that have no finite loss, if there is one."""
        if self.error is not None and self.error.useless is not None:
            self._checkpoints.drop(self.error.useless)

    def finish(self):
        """Until what is being saved is on disk."""
        self._checkpoints.wait()

    def _due(self, number: int, last: bool) -> tuple[bool, bool]:
        """Whether step `number` is logged, and whether it is saved."""
        return number % self._config.log_every == 0 or last, number % self._config.checkpoint_every == 0 or last


def train(members: Sequence[Member], batches: Iterable[jax.Array], total: int, tokens_per_step: int):
    """Train `members` on the same batches, each from the step that it is at, to step `total`.

    `batches` begin after the earliest of these steps. A member whose loss or gradient is no longer finite is left as it
    is and has an `error`; its newest checkpoint then has a finite loss, and the others go on. On SIGTERM or Ctrl-C, in
    any process, all states are saved and Interrupted raised; a second signal stops at once.
    """
    learning = [member for member in members if member.start < total]
    if not learning:
        return
    done = min(member.start for member in learning)
    mesh = learning[0].state.step.sharding.mesh
    with _Signals() as signals, _bar(total, done, tokens_per_step) as bar, _at_once(mesh, len(learning)) as each:
        ask = _ask_all(mesh) if processes.is_distributed() else None
        for batch in batches:
            done += 1
            last, now = done == total, [member for member in learning if member.start < done]
            asked = {} if ask is None else {STOP: ask(signals.received)}
            each(partial(Member.advance, batch=batch, number=done, last=last, asked=asked), now)
            stop = signals.received if ask is None else max((member.metrics.stop for member in now), default=0)
            if stop:
                each(partial(Member.wait, ahead=0), now)
            for member in now:
                member.drop_useless()
            learning = [member for member in learning if member.error is None]
            now = [member for member in now if member.error is None]
            _advance(bar, min((member.metrics.step for member in now), default=done), tokens_per_step)
            rows = []
            for member in now:
                rows.append(member.keep(done, last, tokens_per_step, bool(stop)))
                if ask is not None and len(now) > 1:
                    # Several processes can agree on one checkpoint at a time only.
                    member.finish()
            _show(bar, [row for row in rows if row])
            if stop:
                for member in learning:
                    member.finish()
                raise Interrupted(f"{signal.Signals(stop).name}: saved at step {done} of {total}", 128 + stop)
            if not learning:
                break
    for member in learning:
        member.finish()


@contextmanager
def _at_once(mesh: jax.sharding.Mesh, count: int):
    """each(function, members), which calls function(member) for all of them.

    On a single CPU device several are called at once: XLA runs there side by side what several threads start, and so
    uses the cores that one autoencoder's step leaves idle.
    """
    cores = usable_cores() if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu" else 1
    if min(cores, count) == 1:
        yield lambda function, members: [function(member) for member in members]
        return
    compiled = False
    with ThreadPoolExecutor(min(cores, count)) as pool:

        def each(function, members):
            nonlocal compiled
            # Two threads that call a new program would both compile it.
            run = pool.map if compiled else map
            list(run(as_here(function), members))
            compiled = True

        yield each


def _ask_all(mesh: jax.sharding.Mesh) -> Callable[[int], jax.Array]:
    """ask(signal) -> the largest signal that any process on `mesh` gives, a scalar on its way like a step's metrics."""
    split, count = NamedSharding(mesh, P(mesh.axis_names)), mesh.size
    largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))
    as_array = lambda number: place(lambda a, z: np.full(z - a, number), (count,), np.int32, split)
    nothing = as_array(0)
    return lambda number: largest(as_array(number) if number else nothing)


class _Metrics:
    """The metrics of steps since the last log row, some of which are under way on the device."""

    # The signal that some process got, in the metrics that were waited for.
    stop = 0

    def __init__(self, start: int):
        self._pending, self._window, self.step = deque(), [], start

    def add(self, values: dict):
        self._pending.append(values)

    def wait(self, ahead: int):
        """Until at most `ahead` steps are under way. Raises Diverged if the loss of one is not a number."""
        while len(self._pending) > ahead:
            values = jax.device_get(self._pending.popleft())
            self.stop = self.stop or int(values.pop(STOP, 0))
            self.step += 1
            self._window.append(values)
            # The loss is that of the weights before the step, the gradient decides those after it.
            for name in ("loss", "grad_norm"):
                if not np.isfinite(values[name]):
                    raise Diverged(
                        f"{name} became {values[name]} at step {self.step}: start another --run with a lower --lr",
                        self.step - 1 if name == "loss" else None,
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


def _advance(bar: tqdm, step: int, tokens_per_step: int):
    """Show that `step` has come back from the devices."""
    if new := step * tokens_per_step - bar.n:
        # So all is compiled.
        bar.set_description("training", refresh=False)
        bar.update(new)


def _show(bar: tqdm, rows: list[dict]):
    """Show NMSE and dead latents, of several members the least and the largest."""
    if rows:
        span = lambda name, form: " to ".join(
            form.format(value) for value in sorted({min(row[name] for row in rows), max(row[name] for row in rows)})
        )
        bar.set_postfix(nmse=span("nmse", "{:.3f}"), dead=span("dead_fraction", "{:.1%}"), refresh=False)


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
