"""Several processes that are one run: starting them, agreeing on what one of them found, ending together.

What they agree on goes through the key-value store of JAX's coordinator, which is a thread of process 0: no devices
take part, a process waits as long as it takes, and Ctrl-C still works meanwhile. Where there is one process, all of
this does nothing.
"""

import json
import math
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import jax

from jaxsae.errors import BadInput

T = TypeVar("T")

# Seconds until the others are there, at the start: hosts may be slow to come up.
START = 300
# Seconds without a sign of life after which a process is dead, and JAX aborts the others.
HEARTBEAT = 45
# Seconds that a process waits for the others before it exits.
END = 30


@dataclass(frozen=True)
class DistributedConfig:
    distributed: bool = False
    """One of several processes of a run, each with devices of its own: the same command on every host. On Slurm, GKE,
    Cloud TPU and under Open MPI they find each other."""
    coordinator: str | None = None
    """Elsewhere: HOST:PORT of process 0, any free port."""
    processes: int | None = None
    """With --coordinator: number of processes."""
    process: int | None = None
    """With --coordinator: number of this one, from 0."""

    def __post_init__(self):
        flags = {"--coordinator": self.coordinator, "--processes": self.processes, "--process": self.process}
        given = [name for name, value in flags.items() if value is not None]
        if given and not self.distributed:
            raise BadInput(f"{' '.join(given)} without --distributed: add it, or leave out the others")
        if given and len(given) < len(flags):
            missing = [name for name in flags if name not in given]
            raise BadInput(
                f"{' '.join(given)} without {' '.join(missing)}: give all three, or none where a cluster says them"
            )
        if given:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
                raise BadInput(f"--coordinator is {self.coordinator}: give HOST:PORT of process 0, such as host0:8476")
            if not 0 <= self.process < self.processes:
                raise BadInput(
                    f"--process is {self.process} and --processes is {self.processes}: processes are numbered from 0, "
                    "so give 0 to one less than their number"
                )


def start(config: DistributedConfig):
    """Join the other processes, where `config` says that there are some; must come before any use of devices.

    Raises BadInput where they cannot be found. Where they do not all come, JAX aborts after START seconds.
    """
    if not config.distributed or jax.distributed.is_initialized():
        return
    # JAX's own handler of SIGTERM would take the place of the training loop's.
    jax.config.update("jax_enable_preemption_service", False)
    found = {}
    if config.coordinator is not None:
        if config.process:
            _reach(config.coordinator)
        found = {"coordinator_address": config.coordinator, "num_processes": config.processes}
        found |= {"process_id": config.process, "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=START,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=END,
        )
    except Exception as error:  # each cluster's detection raises its own
        if "before any JAX calls" in str(error):
            raise BadInput("--distributed came after JAX had started its devices: start the processes first") from error
        if found:
            raise BadInput(
                f"--coordinator {config.coordinator} cannot be used by process {config.process}: {_line(error)}"
            ) from error
        raise BadInput(
            f"--distributed found no Slurm, Open MPI, GKE or Cloud TPU that says which processes there are "
            f"({_line(error)}): start it there, or give --coordinator HOST:PORT --processes N --process I"
        ) from error
    devices = Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        raise BadInput(f"the processes have {sorted(devices.values())} devices: give each of them the same number")


def _reach(coordinator: str):
    """Wait until process 0 answers. JAX would wait too, but would then abort instead of raising."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + START
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise BadInput(
                    f"--coordinator {coordinator} was not reached in {START} seconds ({error}): give the host of "
                    "process 0 and a port that is open between the hosts"
                ) from error
        time.sleep(0.2)


def several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def name() -> str:
    """`process I of N: ` where there are several, for errors."""
    return f"process {jax.process_index()} of {jax.process_count()}: " if several() else ""


def on_first(function: Callable[[], T]) -> T:
    """What `function` returns in process 0, where alone it runs: text, numbers or None. What it raises, all raise."""
    if not several():
        return function()
    turn = _turn()
    if is_first():
        _say(turn, json.dumps(_announced(function)))
    return json.loads(_hear(turn, 0))


def on_each(function: Callable[[], T]) -> T:
    """What `function` returns here, once it has returned in every process; where it raises in one, all raise."""
    if not several():
        return function()
    result = _announced(function)
    exchange("")
    return result


def first_then_rest(function: Callable[[], T]) -> T:
    """`function` in process 0, then in the others, which find what the first has made where they share its disk."""
    if not several():
        return function()
    results = []
    on_first(lambda: results.append(function()))
    return on_each(lambda: results[0] if results else function())


def exchange(text: str) -> list[str]:
    """The text that each process gives, once all have."""
    if not several():
        return [text]
    turn = _turn()
    _say(turn, text)
    return [_hear(turn, process) for process in range(jax.process_count())]


def end(status: int, error: BaseException | None = None) -> int:
    """Leave the other processes; then `status`. Where they do not come along, this process ends here and now.

    `error` is what ended it; where it says that another process is gone, nothing waits for that.
    """
    if not several():
        return status
    try:
        if error is not None:
            _announce(error)
        if not is_loss(error):
            # Behind an error the others may be waiting for this process, and notice when it is gone.
            _say("end", "")
            for process in range(jax.process_count()):
                _hear("end", process, until=time.monotonic() + (END if status == 0 else END / 3))
            jax.distributed.shutdown()
            return status
    except BaseException as other:
        print(f"jaxsae: {name()}the other processes did not end with this one ({_line(other)})", file=sys.stderr)
    # JAX's own farewell, and threads that are inside a collective, would wait for those that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_loss(error: BaseException | None) -> bool:
    """Whether `error` is what JAX raises where another process is gone."""
    signs = ("Gloo", "Connection closed", "Connection reset", "UNAVAILABLE", "heartbeat", "coordination service")
    return several() and isinstance(error, jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in signs)


def _announced(function):
    """What `function` returns; what it raises is announced to the other processes."""
    try:
        return function()
    except Exception as error:
        _announce(error)
        raise


def _announce(error: BaseException):
    """Tell those who wait for this process how it failed; the first failure of all counts."""
    try:
        bad, what = isinstance(error, BadInput), f"{type(error).__name__}: {_line(error)}"
        said = _line(error) if bad else "a signal ended it" if isinstance(error, SystemExit) else what
        _store().key_value_set("jaxsae/failure", json.dumps([jax.process_index(), bad, said]))
    except jax.errors.JaxRuntimeError:
        pass  # there is one, or the coordinator is gone


def _raise_announced():
    try:
        process, bad, said = json.loads(_store().key_value_try_get("jaxsae/failure"))
    except jax.errors.JaxRuntimeError:
        return
    if bad:
        raise BadInput(f"{said} (says process {process})")
    raise RuntimeError(f"process {process} ended, so this one does too ({said})")


def _line(error) -> str:
    return " ".join(str(error).split())


def _store():
    # JAX has no public name for it. Orbax goes the same way.
    from jax._src import distributed

    return distributed.global_state.client


def _turn() -> int:
    """The number of this exchange: all processes take part in all of them, in one order."""
    return _store().key_value_increment(f"jaxsae/turn/{jax.process_index()}", 1)


def _say(turn: int | str, text: str):
    _store().key_value_set(f"jaxsae/{turn}/{jax.process_index()}", f"={text}")


def _hear(turn: int | str, process: int, until: float = math.inf) -> str:
    """What `process` says, once it does. Raises what another process announced, TimeoutError after `until`."""
    while True:
        try:
            # Not longer at once, because signals are handled in between.
            return _store().blocking_key_value_get(f"jaxsae/{turn}/{process}", 500)[1:]
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if until == math.inf:
            _raise_announced()
        elif time.monotonic() > until:
            raise TimeoutError(f"nothing from process {process}")
