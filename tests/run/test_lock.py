"""One process at a time writes a run folder."""

import json
import os
import socket
import subprocess
import threading
import time

import pytest

from jaxsae.errors import BadInput
from jaxsae.run import lock
from tests.run.commands import refused


def left(folder, age=0.0, **facts):
    """The lock that a process of these facts has left, as old as `age` seconds."""
    path = folder / lock.FILE
    path.write_text(json.dumps(lock._this_process() | facts))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_second_process_is_told_who_writes_the_folder(tmp_path, capsys):
    """At once, with or without --resume, whatever its configuration."""
    with lock.hold(tmp_path):
        began = time.monotonic()
        for command in (["train", "--run", str(tmp_path)], ["train", "--run", str(tmp_path), "--resume"]):
            refused(capsys, command, f"{os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-')}")
        assert time.monotonic() - began < 1
    assert not any(tmp_path.iterdir())


def test_a_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    left(tmp_path, pid=process.pid, started=lock._started(process.pid))
    with pytest.raises(BadInput, match=f"another process, {process.pid} on"):
        lock.check_free(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    began = time.monotonic()
    with lock.hold(tmp_path):  # also before anybody has asked for its exit status
        assert time.monotonic() - began < lock.SETTLE_S + 1
    process.wait()
    left(tmp_path, pid=process.pid, started="1")
    lock.check_free(tmp_path)


def test_a_process_that_has_the_number_of_a_dead_one_does_not_hold_its_lock(tmp_path):
    left(tmp_path, started="12345")
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / lock.FILE).read_text())["started"] == lock._started(os.getpid())


def test_a_lock_of_another_machine_is_taken_over_when_it_gives_no_sign_of_life(tmp_path, monkeypatch):
    left(tmp_path, age=lock.DEAD_AFTER_S + 5, system="elsewhere", host="node7")
    with lock.hold(tmp_path):
        pass
    # The clocks of the machines do not matter: it is the disk's that counts.
    monkeypatch.setattr(lock, "DEAD_AFTER_S", 0.5)
    left(tmp_path, system="elsewhere", host="node7")
    with lock.hold(tmp_path):
        pass


def test_a_living_process_of_another_machine_holds_its_lock(tmp_path, capsys):
    path = left(tmp_path, age=lock.DEAD_AFTER_S - 5, system="elsewhere", host="node7", pid=321)
    beat = threading.Timer(0.3, lambda: os.utime(path))
    beat.start()
    with pytest.raises(BadInput, match="321 on node7 since"):
        lock.check_free(tmp_path)
    beat.join()
    assert "looking whether process 321 on node7" in capsys.readouterr().err


def test_of_many_that_take_over_a_lock_one_holds_it(tmp_path):
    left(tmp_path, started="12345")
    together, done, outcomes = threading.Barrier(4), threading.Event(), []

    def take():
        together.wait()
        try:
            with lock.hold(tmp_path):
                outcomes.append("held")
                done.wait(20)
        except BadInput:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(outcomes) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_process_whose_folder_was_taken_over_ends(tmp_path, monkeypatch, capsys):
    """It was suspended for so long that another one took it for dead."""
    ended = threading.Event()

    def end(status):
        ended.status = status
        ended.set()
        raise OSError

    monkeypatch.setattr(lock.os, "_exit", end)
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with lock.hold(tmp_path):
        path, before = tmp_path / lock.FILE, (tmp_path / lock.FILE).stat().st_mtime_ns
        while path.stat().st_mtime_ns == before:
            time.sleep(0.01)
        left(tmp_path, host="node7", pid=321)
        assert ended.wait(10) and ended.status == 1
    assert "process 321 on node7 has taken over" in capsys.readouterr().err
    assert json.loads(path.read_text())["host"] == "node7", "what is not its own is left"
