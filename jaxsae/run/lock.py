"""One process at a time trains in a run folder: a file in it names that process.

The system's own locks do not work on every network disk, and do not say who holds them. The process that holds a
folder changes the time of its file every few seconds. After it has died, the next one takes the file over: at once on
the same machine, where its process id tells that it is gone, elsewhere when the file has not changed for a while.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxsae.errors import BadInput

FILE = ".lock"
# Between two signs of life.
BEAT_S = 10
# A process of another machine that gives none for so long is dead. Network disks may show a change late.
DEAD_AFTER_S = 60
# Two processes that take over the same file both see, after this time, which of them wrote last.
SETTLE_S = 0.3


@contextmanager
def hold(folder: Path, name: str | None = None) -> Iterator[None]:
    """No other process holds `folder` meanwhile, on this machine or on another one that shares the disk.

    Raises BadInput, which names the living process that holds it; it calls the folder `name` (default: --run FOLDER).
    If another process takes the folder over while this one is suspended, this one ends as soon as it notices.
    """
    lock, own = folder / FILE, _this_process()
    _acquire(lock, own, name)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(lock, own, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _holder(lock) == own:
            lock.unlink(missing_ok=True)


def check_free(folder: Path):
    """Raises BadInput if a living process holds `folder`."""
    lock = folder / FILE
    if lock.exists() and _is_held(lock):
        raise _refusal(lock)


def _acquire(lock: Path, own: dict, name: str | None):
    while True:
        try:
            with lock.open("x") as file:
                file.write(json.dumps(own))
            return
        except FileExistsError:
            pass
        if _is_held(lock):
            raise _refusal(lock, name)
        if not lock.exists():
            continue
        scratch = lock.with_name(f"{FILE}-{own['token']}")
        scratch.write_text(json.dumps(own))
        os.replace(scratch, lock)
        time.sleep(SETTLE_S)
        if _holder(lock) == own:
            return


def _is_held(lock: Path) -> bool:
    """Whether a living process holds a lock. Of one on another machine, waits for the next sign of life."""
    holder = _holder(lock)
    if holder is not None and holder["system"] == _system():
        started = _started(holder["pid"])
        return started in (holder["started"], "unknown")
    first = _changed(lock)
    if holder is not None:
        print(
            f"jaxsae: looking whether process {holder['pid']} on {holder['host']} still writes {lock.parent}",
            file=sys.stderr,
        )
    while (changed := _changed(lock)) is not None:
        if changed != first:
            return True
        if _now(lock) - changed > DEAD_AFTER_S:
            return False
        time.sleep(1)
    return False


def _refusal(lock: Path, name: str | None = None) -> BadInput:
    holder, name = _holder(lock) or {"pid": "?", "host": "?", "since": "?"}, name or f"--run {lock.parent}"
    return BadInput(
        f"{name} is being written by another process, {holder['pid']} on {holder['host']} since {holder['since']}: "
        "wait for its end, or give another folder"
    )


def _beat(lock: Path, own: dict, stop: threading.Event):
    while not stop.wait(BEAT_S):
        # The disk may be away for a moment.
        with suppress(OSError):
            if (holder := _holder(lock)) not in (None, own):
                print(
                    f"jaxsae: process {holder['pid']} on {holder['host']} has taken over {lock.parent}, because this "
                    f"one gave no sign of life for {DEAD_AFTER_S} seconds: it ends here",
                    file=sys.stderr,
                    flush=True,
                )
                # Whatever this process still wrote would be mixed with what the other one writes.
                os._exit(1)
            os.utime(lock)


def _this_process() -> dict:
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "system": _system(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _holder(lock: Path) -> dict | None:
    """What a lock says; None if it is not there, or not written to its end."""
    try:
        return json.loads(lock.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _system() -> str:
    """Where a process id means what it means here: this start of this machine, and this container on it."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this system started, to tell it from others of its number; None if it is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it is there, and another user's
    try:
        # The name, in brackets, may hold spaces.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "unknown"
    return None if state in "ZX" else rest[18]


def _changed(lock: Path) -> float | None:
    """When a lock was last changed, as the disk's own clock says; None if it is gone."""
    try:
        with lock.open() as file:  # opened, a file of a network disk is looked up anew
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _now(lock: Path) -> float:
    """The time on the clock of the disk, which need not be this machine's."""
    probe = lock.with_name(f"{FILE}-{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
