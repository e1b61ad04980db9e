"""Several processes that are one run: starting them, agreeing on what one of them found, ending together.

Process 0 is the primary one: it writes and prints. What they agree on goes through the key-value store of JAX's
coordinator, a thread of process 0: no devices take part, a process waits as long as it takes, and Ctrl-C still works
meanwhile. With one process, all of this does nothing.
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

from jaxsae.distributed import devices
from jaxsae.errors import BadInput

T = TypeVar("T")

# Until all processes have started: hosts may be slow to come up.
STARTUP_TIMEOUT_S = 300
# Without a sign of life, a process is dead after this time, and JAX aborts the others.
HEARTBEAT_TIMEOUT_S = 45
# How long a process waits for the others before it exits.
SHUTDOWN_TIMEOUT_S = 30
# Parts of what JAX 0.10 raises if another process is gone.
PEER_FAILURES = ("Gloo", "Connection closed", "Connection reset", "UNAVAILABLE", "heartbeat", "coordination service")


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
        typed = [name for name, value in flags.items() if value is not None]
        if typed and not self.distributed:
            raise BadInput(f"{' '.join(typed)} without --distributed: add it, or leave out the others")
        if typed and len(typed) < len(flags):
            missing = [name for name in flags if name not in typed]
            raise BadInput(
                f"{' '.join(typed)} without {' '.join(missing)}: give all three, or none where a cluster says them"
            )
        if typed:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
                raise BadInput(f"--coordinator is {self.coordinator}: give HOST:PORT of process 0, such as host0:8476")
            if not 0 <= self.process < self.processes:
                raise BadInput(
                    f"--process is {self.process} and --processes is {self.processes}: processes are numbered from 0, "
                    "so give 0 to one less than their number"
                )


def start(config: DistributedConfig):
    """Join the other processes if `config` says that there are some; must come before any use of devices.

    Raises BadInput if they cannot be found, or if this process sees fewer devices than the job gives it. If they do not
    all come, JAX aborts after STARTUP_TIMEOUT_S seconds.
    """
    if jax.distributed.is_initialized():
        return
    if config.distributed:
        _join(config)
    if lacking := devices.lacking(os.environ, jax.default_backend(), jax.local_device_count()):
        raise BadInput(lacking)


def _join(config: DistributedConfig):
    # JAX's own handler of SIGTERM would take the place of the training loop's.
    jax.config.update("jax_enable_preemption_service", False)
    address = {}
    if config.coordinator is not None:
        if config.process:
            _reach(config.coordinator)
        address = {"coordinator_address": config.coordinator, "num_processes": config.processes}
        address |= {"process_id": config.process, "cluster_detection_method": "deactivate"}
    try:
        jax.distributed.initialize(
            **address,
            initialization_timeout=STARTUP_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_S,
        )
    except Exception as error:  # each cluster's detection raises its own
        if "before any JAX calls" in str(error):
            raise BadInput("--distributed came after JAX had started its devices: start the processes first") from error
        if address:
            raise BadInput(
                f"--coordinator {config.coordinator} cannot be used by process {config.process}: {_line(error)}"
            ) from error
        raise BadInput(
            f"--distributed found no Slurm, Open MPI, GKE or Cloud TPU that says which processes there are "
            f"({_line(error)}): start it there, or give --coordinator HOST:PORT --processes N --process I"
        ) from error
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise BadInput(f"the processes have {sorted(counts.values())} devices: give each of them the same number")


def _reach(coordinator: str):
    """Wait until process 0 answers. JAX would wait too, but would then abort instead of raising."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + STARTUP_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise BadInput(
                    f"--coordinator {coordinator} was not reached in {STARTUP_TIMEOUT_S} seconds ({error}): give the "
                    "host of process 0 and a port that is open between the hosts"
                ) from error
        time.sleep(0.2)


def is_distributed() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def one_by_one(result: T) -> T:
    """`result` of a program with collectives; waits for it if several processes run on CPUs.

    There programs that do not wait for each other run side by side, and their collectives may wait for ever: each in
    one process for another one in the next.
    """
    return jax.block_until_ready(result) if is_distributed() and jax.default_backend() == "cpu" else result


def is_primary() -> bool:
    """Whether this process is the primary one, which writes and prints."""
    return jax.process_index() == 0


def name() -> str:
    """`process I of N: ` for errors; empty with one process."""
    return f"process {jax.process_index()} of {jax.process_count()}: " if is_distributed() else ""


def on_primary(function: Callable[[], T]) -> T:
    """Run `function` on process 0 and broadcast its JSON-able result; an exception is raised everywhere."""
    if not is_distributed():
        return function()
    number = _next_round()
    if is_primary():
        _put(number, json.dumps(_announced(function)))
    return json.loads(_get(number, 0))


def on_all(function: Callable[[], T]) -> T:
    """Run `function` on every process and return this one's result; an exception in one is raised everywhere."""
    if not is_distributed():
        return function()
    result = _announced(function)
    exchange("")
    return result


def primary_first(function: Callable[[], T]) -> T:
    """Run `function` on process 0, then on the others, which find what it has made if they share its disk."""
    if not is_distributed():
        return function()
    results = []
    on_primary(lambda: results.append(function()))
    return on_all(lambda: results[0] if results else function())


def exchange(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if not is_distributed():
        return [text]
    number = _next_round()
    _put(number, text)
    return [_get(number, process) for process in range(jax.process_count())]


def end(status: int, error: BaseException | None = None) -> int:
    """Leave the other processes and return `status`. If they do not come along, this process ends here and now.

    `error` is what ended this process; if it says that another process is gone, nothing waits for that one.
    """
    if not is_distributed():
        return status
    try:
        if error is not None:
            _announce(error)
        if not is_peer_failure(error):
            # After an error the others may be waiting for this process, and notice when it is gone.
            _put("end", "")
            patience = SHUTDOWN_TIMEOUT_S if status == 0 else SHUTDOWN_TIMEOUT_S / 3
            for process in range(jax.process_count()):
                _get("end", process, until=time.monotonic() + patience)
            jax.distributed.shutdown()
            return status
    except BaseException as other:
        print(f"jaxsae: {name()}the other processes did not end with this one ({_line(other)})", file=sys.stderr)
    # JAX's own farewell, and threads that are inside a collective, would wait for those that are gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_peer_failure(error: BaseException | None) -> bool:
    """Whether `error` is what JAX raises if another process is gone."""
    is_runtime = isinstance(error, jax.errors.JaxRuntimeError)
    return is_distributed() and is_runtime and any(part in str(error) for part in PEER_FAILURES)


def _announced(function):
    """Call `function`; announce what it raises to the other processes."""
    try:
        return function()
    except Exception as error:
        _announce(error)
        raise


def _announce(error: BaseException):
    """Tell the processes that wait for this one how it failed; the first failure of all counts."""
    try:
        bad, what = isinstance(error, BadInput), f"{type(error).__name__}: {_line(error)}"
        message = _line(error) if bad else "a signal ended it" if isinstance(error, SystemExit) else what
        _store().key_value_set("jaxsae/failure", json.dumps([jax.process_index(), bad, message]))
    except jax.errors.JaxRuntimeError:
        pass  # there is one, or the coordinator is gone


def _raise_announced():
    try:
        process, bad, message = json.loads(_store().key_value_try_get("jaxsae/failure"))
    except jax.errors.JaxRuntimeError:
        return
    if bad:
        raise BadInput(f"{message} (says process {process})")
    raise RuntimeError(f"process {process} ended, so this one does too ({message})")


def _line(error) -> str:
    return " ".join(str(error).split())


def _store():
    # JAX has no public name for it. Orbax goes the same way.
    from jax._src import distributed

    return distributed.global_state.client


def _next_round() -> int:
    """The number of this exchange: all processes take part in all of them, in one order."""
    return _store().key_value_increment(f"jaxsae/round/{jax.process_index()}", 1)


def _put(number: int | str, text: str):
    _store().key_value_set(f"jaxsae/{number}/{jax.process_index()}", f"={text}")


def _get(number: int | str, process: int, until: float = math.inf) -> str:
    """Wait for what `process` puts. Raises what another process announced, TimeoutError after `until`."""
    while True:
        try:
            # Not longer at once, because signals are handled in between.
            return _store().blocking_key_value_get(f"jaxsae/{number}/{process}", 500)[1:]
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if until == math.inf:
            _raise_announced()
        elif time.monotonic() > until:
            raise TimeoutError(f"nothing from process {process}")
