"""Sweeps of runs that take no time (fakes.py): what is skipped, resumed, refused and reported, and what kills leave."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jaxsae.config import Config, from_json, with_fields
from jaxsae.errors import BadInput, Interrupted
from jaxsae.run import lock
from jaxsae.sweep import folder, product
from jaxsae.sweep.command import RunsFailed, table, train_all
from tests.marks import slow
from tests.run.commands import refused

TRAIN, SLOWLY = "tests.sweep.fakes:train", "tests.sweep.fakes:slowly"
# What differs between two sweeps of the same runs.
TIMES = ("seconds", "tokens_per_second")


def runs_of(*seeds):
    return product(with_fields(Config(), tokens=1000), {"sae.n": [64], "seed": seeds})


def rows_of(out):
    return list(csv.DictReader((out / "results.csv").open()))


def here(configs, out, **more):
    """A sweep without processes of its own, as fast as a test should be."""
    return train_all(configs, out, "here", train=TRAIN, **more)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    """Nor does one that takes its process with it. What is done is not touched again, what failed is tried again.

    It starts beside a checkout, as after `git clone`: a folder of the package's name that is not the package.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "jaxsae").mkdir()
    configs = runs_of(13, 15, 14, 0, 1)
    with pytest.raises(RunsFailed) as failed:
        train_all(configs, tmp_path, workers=1, train=TRAIN)
    said = str(failed.value)
    assert said.startswith("3 of 5 runs are not done: n=64-seed=13: FloatingPointError: loss became nan; ")
    assert "n=64-seed=15: its process ended: killed by SIGKILL" in said and "n=64-seed=14: --hook is odd" in said
    rows = {row["seed"]: row for row in rows_of(tmp_path)}
    assert [rows[seed]["status"] for seed in ("13", "15", "14", "0", "1")] == ["failed"] * 3 + ["done"] * 2
    assert rows["13"]["error"] == "FloatingPointError: loss became nan" and float(rows["1"]["nmse"]) == 1 + 1 / 64
    shown = capsys.readouterr().err
    assert "5 runs: 5 waiting\nstarted  n=64-seed=13\n" in shown and "5 runs: 2 done, 3 failed\n" in shown
    assert "training n=64-seed=0" in folder.log_file(tmp_path, ["n=64-seed=0"]).read_text()
    assert "FloatingPointError: loss" in folder.log_file(tmp_path, ["n=64-seed=13"]).read_text()
    lines = table(configs, tmp_path).splitlines()
    assert lines[1].split() == ["n=64-seed=13", "failed"] and lines[5].split()[:3] == ["n=64-seed=1", "done", "1.016"]

    before = (tmp_path / "n=64-seed=0" / "summary.json").stat().st_mtime_ns
    with pytest.raises(RunsFailed, match="1 of 3 runs are not done: n=64-seed=13"):
        here(runs_of(13, 0, 1), tmp_path)
    assert here(runs_of(0, 1), tmp_path)["n=64-seed=1"]["nmse"] == 1 + 1 / 64
    assert before == (tmp_path / "n=64-seed=0" / "summary.json").stat().st_mtime_ns


def test_a_changed_configuration_is_named_before_anything_starts(tmp_path):
    configs = runs_of(0, 1)
    here(configs, tmp_path)
    changed = configs | {"n=64-seed=1": with_fields(configs["n=64-seed=1"], **{"sae.k": 5}), "new": Config()}
    with pytest.raises(BadInput, match=r"1 of the runs in .* differ .* n=64-seed=1: .*--sae.k was 32, not 5.*--out"):
        here(changed, tmp_path)
    assert not (tmp_path / "new").exists()
    # A run that is skipped is the one that was asked for: more tokens are another one.
    for tokens in (500, 2000):
        longer = {name: with_fields(config, tokens=tokens, lr=1e-3, ema=0.9) for name, config in configs.items()}
        with pytest.raises(BadInput, match="2 of the runs"):
            here(longer, tmp_path)
    # Where it is evaluated and how it is logged does not matter.
    here({name: with_fields(config, log_every=7) for name, config in configs.items()}, tmp_path)


def test_what_cannot_be_swept_is_refused(tmp_path, capsys):
    file = tmp_path / "sizes.py"
    file.write_text("from jaxsae.config import Config\nconfigs = lambda: {'a': Config(), 'b': Config(eval_tokens=5)}\n")
    command = ["sweep", str(file), "--out", str(tmp_path / "out")]
    refused(capsys, [*command, "--only", "c"], "--only c is no run of this sweep: allowed are a, b")
    refused(capsys, [*command, "--workers", "0"], "--workers is 0")
    refused(capsys, [*command, "--launcher", "slurm", "--slurm.hours", "0"], "--slurm.hours is 0")
    refused(capsys, [*command, "--launcher", "slurm", "--slurm.options", "exclusive"], "give NAME=VALUE")
    refused(capsys, ["sweep", str(tmp_path / "absent.py")], "is not a file")
    assert not (tmp_path / "out").exists()
    refused(capsys, ["sweep", str(file), "--out", str(file)], "is a file: give a folder")
    with pytest.raises(BadInput, match="the configuration of a cannot be written as JSON"):
        here({"a": with_fields(Config(), text=(Path("text.txt"),))}, tmp_path / "out")


def test_a_second_sweep_in_a_folder_is_told_of_the_first(tmp_path):
    folder.make(tmp_path)
    with lock.hold(tmp_path / folder.OWN):
        message = rf"the sweep in {tmp_path} is being written by another process, {os.getpid()} on"
        with pytest.raises(BadInput, match=message):
            train_all(runs_of(0), tmp_path, train=TRAIN)
        # Processes of single runs stand beside it.
        assert here(runs_of(0), tmp_path)["n=64-seed=0"]["tokens"] == 1000


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxsae.sweep.job.PATIENCE_S", 0.1)
    configs = runs_of(0, 1)
    (tmp_path / "n=64-seed=0").mkdir(parents=True)
    with lock.hold(tmp_path / "n=64-seed=0"):
        with pytest.raises(
            RunsFailed, match=f"1 of 2 .*/n=64-seed=0 is being written by another process, {os.getpid()}"
        ):
            here(configs, tmp_path)
    assert folder.state(tmp_path, "n=64-seed=1") == "done" and folder.failure(tmp_path, "n=64-seed=0") is None
    assert here(configs, tmp_path)["n=64-seed=0"]["tokens"] == 1000


def test_a_run_resumes_in_its_folder(tmp_path):
    """What a job trains is what the sweep was given."""
    configs = runs_of(0)
    here(configs, tmp_path)
    own = folder.read_config(tmp_path, "n=64-seed=0")
    assert own == replace(configs["n=64-seed=0"], run=str(tmp_path / "n=64-seed=0"), resume=True)
    assert from_json(folder.config_file(tmp_path, "n=64-seed=0")) == configs["n=64-seed=0"]


def test_what_ends_a_whole_group_fails_the_runs_that_are_not_done(tmp_path, monkeypatch):
    """Each run's own failure is noted as it ends, before another one takes the process with it."""
    monkeypatch.setattr("jaxsae.run.together.groups", lambda configs, share: [[*configs]])
    with pytest.raises(RunsFailed, match=r"3 of 4 .*seed=13: FloatingPointError.*seed=16: MemoryError: out of memory"):
        here(runs_of(0, 13, 16, 1), tmp_path)
    assert folder.failure(tmp_path, "n=64-seed=1") == "MemoryError: out of memory"


SCRIPT = """
import sys
from pathlib import Path
from jaxsae.sweep import train_all
from tests.sweep.test_sweep import SLOWLY, runs_of
train_all(runs_of(*range(int(sys.argv[2]))), Path(sys.argv[1]), workers=2, train=SLOWLY)
"""


def killed(out, number, count, progress):
    """A sweep of `count` runs that gets a signal when its runs have come so far, together."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out), str(count)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until and steps(out) < progress:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == -number


def steps(out):
    return sum(int(path.read_text() or 0) for path in out.glob("*/state"))


@pytest.mark.parametrize(("count", "kills"), [(1, (3,)), slow(12, (15, 70))])
def test_a_sweep_that_is_killed_ends_as_one_that_is_not(tmp_path, count, kills):
    """SIGKILL, which leaves it no time: its workers notice, save and end, and a sweep that follows at once waits."""
    for progress in kills:
        killed(tmp_path / "killed", signal.SIGKILL, count, progress)
    configs = runs_of(*range(count))
    at_kill = steps(tmp_path / "killed")
    train_all(configs, tmp_path / "killed", workers=2, train=SLOWLY)
    assert kills[-1] <= at_kill < 10 * count
    assert steps(tmp_path / "killed") == 10 * count, "no step is done twice"
    here(configs, tmp_path / "undisturbed")
    folder_rows = rows_of(tmp_path / "killed")
    train_all(configs, tmp_path / "undisturbed", train=TRAIN)
    expected = rows_of(tmp_path / "undisturbed")
    assert [{**row, **dict.fromkeys(TIMES)} for row in folder_rows] == [
        {**row, **dict.fromkeys(TIMES)} for row in expected
    ]
    logs = "".join(path.read_text() for path in (tmp_path / "killed" / "sweep" / "logs").iterdir())
    assert logs.count("jaxsae: saved at") >= len(kills)


def test_ctrl_c_lets_runs_save(tmp_path, monkeypatch, capsys):
    """As in a terminal: the first stops, and says that the same command resumes."""
    from jaxsae.sweep.launchers import local

    poll = local.Workers.poll

    def interrupted(pool, seconds):
        more = poll(pool, min(seconds, 0.05))
        if steps(tmp_path):
            raise KeyboardInterrupt
        return more

    monkeypatch.setattr(local.Workers, "poll", interrupted)
    with pytest.raises(Interrupted, match="the same command resumes it") as stop:
        train_all(runs_of(0, 1), tmp_path, workers=1, train=SLOWLY)
    assert stop.value.status == 130
    assert [row["status"] for row in rows_of(tmp_path)] == ["stopped", "waiting"]
    assert 0 < steps(tmp_path) < 10 and "saved at" in folder.log_file(tmp_path, ["n=64-seed=0"]).read_text()
    assert not (tmp_path / "n=64-seed=0" / lock.FILE).exists() and not (tmp_path / "sweep" / lock.FILE).exists()
    assert "stopping: what is being trained saves first" in capsys.readouterr().err
