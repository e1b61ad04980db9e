"""Launchers: real runs through `print` and `local`, jobs of submitit with runs that take no time."""

import csv
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxsae.cli import main
from jaxsae.config import Config, with_fields
from jaxsae.sweep import folder, product, train_all
from jaxsae.sweep.launchers import REGISTRY, Work
from jaxsae.sweep.launchers import print as launcher
from jaxsae.sweep.launchers.slurm import SlurmConfig
from tests.marks import slow
from tests.run.commands import refused

TRAIN, SLOWLY = "tests.sweep.fakes:train", "tests.sweep.fakes:slowly"

FILE = """
from jaxsae.config import Config, with_fields
from jaxsae.sweep import product

BASE = with_fields(
    Config(), lm={lm!r}, text=({text!r},), cache={cache!r}, context=32, batch_size=256, tokens=1024, eval_tokens=512,
    buffer_batches=2, mesh=(1, 1), lr=1e-3, **{{"sae.n": 32}},
)


def configs():
    return product(BASE, {{"sae.k": {ks}}})
"""


@pytest.mark.parametrize("printed", [1, slow(3)])
def test_printed_commands_and_a_sweep_train_the_same_folder(printed, tiny_lm, tiny_text, tmp_path, capsys):
    """Each line runs as it is in a shell; the sweep trains what they have left, and has all in its table."""
    file, out, names = tmp_path / "sizes of k.py", tmp_path / "out put", [f"k={k}" for k in range(4, 5 + printed)]
    text = FILE.format(lm=str(tiny_lm), text=str(tiny_text), cache=str(tmp_path / "cache"), ks=range(4, 5 + printed))
    file.write_text(text)
    sweep = ["sweep", str(file), "--out", str(out)]
    assert main([*sweep, "--launcher", "print"]) == 0
    lines, note = capsys.readouterr()
    *lines, last = lines.splitlines()
    assert len(lines) == printed and f"{printed + 1} commands" in note
    assert last == shlex.join(
        [sys.executable, "-m", "jaxsae.cli", "train", "--config", f"{out}/sweep/configs/{names[-1]}.json"]
        + ["--run", f"{out}/{names[-1]}", "--resume"]
    )
    for line in lines:
        subprocess.run(line, shell=True, check=True, capture_output=True)
    assert main([*sweep, "--launcher", "print"]) == 0
    assert capsys.readouterr().out.splitlines() == [last]
    before = {name: (out / name / "summary.json").read_text() for name in names[:-1]}
    assert main([*sweep, "--workers", "1"]) == 0
    shown = capsys.readouterr()
    assert f"done     {names[-1]}  nmse" in shown.err and f"saved in {out / 'results.csv'}" in shown.out
    assert {name: (out / name / "summary.json").read_text() for name in before} == before
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [(row["name"], row["status"], f"k={row['k']}") for row in rows] == [(name, "done", name) for name in names]
    summary = json.loads((out / names[-1] / "summary.json").read_text())
    assert all(float(rows[-1][metric]) == summary[metric] for metric in ("nmse", "flops", "step", "dead_fraction"))
    assert all(float(row["seconds"]) > 0 for row in rows) and (out / names[-1] / "sae" / "sae.safetensors").exists()
    # The file has changed, and runs of it are finished.
    file.write_text(text.replace("lr=1e-3", "lr=2e-3"))
    refused(capsys, sweep, "of the runs in", "k=4: --resume with another configuration", "--lr was 0.001, not 0.002")


@pytest.mark.slow
def test_twelve_runs_that_are_killed_twice_end_as_if_they_were_not(tiny_lm, tiny_text, tmp_path):
    """Real runs: weights, metrics and the table are the same, but for the time that it took."""
    file, names = tmp_path / "sizes.py", [f"k={k}" for k in range(2, 14)]
    text = FILE.format(lm=str(tiny_lm), text=str(tiny_text), cache=str(tmp_path / "cache"), ks=range(2, 14))
    file.write_text(text.replace("tokens=1024", "tokens=8192, log_every=2, checkpoint_every=5"))
    sweep = [sys.executable, "-m", "jaxsae.cli", "sweep", str(file), "--workers", "2", "--out"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    rows = lambda: sum(path.read_text().count("\n") for path in killed.glob("*/metrics.jsonl"))
    for progress in (20, 110):  # of 192
        process = subprocess.Popen([*sweep, str(killed)])
        while process.poll() is None and rows() < progress:
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL and rows() < 192
    subprocess.run([*sweep, str(killed)], check=True)
    subprocess.run([*sweep, str(undisturbed)], check=True)
    tables = [list(csv.DictReader((out / "results.csv").open())) for out in (killed, undisturbed)]
    for table in tables:
        for row in table:
            del row["seconds"], row["tokens_per_second"]
    assert tables[0] == tables[1] and [row["name"] for row in tables[0]] == names
    for name in names:
        weights = [(out / name / "sae" / "sae.safetensors").read_bytes() for out in (killed, undisturbed)]
        assert weights[0] == weights[1]


def test_runs_that_are_trained_together_are_one_command(tmp_path):
    """`print` names them after --only, and `here` trains them in its process."""
    command = ["jaxsae", "sweep", "sizes.py", "--out", "out", "--share", "stack"]
    work = Work(tmp_path, [["a", "b"], ["c"]], {}, command=command)
    assert launcher._command(work, ["a", "b"]) == [*command, "--launcher", "here", "--only", "a", "b"]
    single = f"jaxsae train --config {tmp_path}/sweep/configs/c.json --run {tmp_path}/c --resume"
    assert shlex.join(launcher._command(work, ["c"])) == single
    configs = product(with_fields(Config(), tokens=1000), {"seed": [0, 1, 2]})
    done = train_all(configs, tmp_path, "here", only=["seed=0", "seed=2"], train=TRAIN)
    assert list(done) == ["seed=0", "seed=2"] and folder.state(tmp_path, "seed=1") == "waiting"
    assert not (tmp_path / "results.csv").exists(), "several such processes may run at once"


def test_the_local_executor_of_submitit_trains_a_sweep(tmp_path):
    """A job whose time is over saves, goes into the queue again, and goes on where it was."""
    pytest.importorskip("submitit")
    if not Path("/proc/self/task").exists():
        pytest.skip("the system does not say what the children of a process are")
    (name, *_) = configs = product(with_fields(Config(), tokens=1000), {"seed": [0]})
    folder.make(tmp_path)
    folder.write_configs(configs, tmp_path)
    kind = REGISTRY["cluster"]
    with kind.start(Work(tmp_path, [[name]], configs, train=SLOWLY), kind.Config()) as pool:
        state = tmp_path / name / "state"
        while pool.poll(0.02) and not (state.exists() and int(state.read_text() or 0) > 2):
            pass
        assert pool.in_hand() == {name}
        ((job, _),) = pool._jobs.values()
        controller = job._process.pid
        (task,) = map(int, Path(f"/proc/{controller}/task/{controller}/children").read_text().split())
        os.kill(task, signal.SIGUSR2)
        while pool.poll(0.05):
            pass
    assert folder.state(tmp_path, name) == "done" and state.read_text() == "10"
    assert folder.log_file(tmp_path, [name]).read_text().count("saved at") == 1


def test_a_job_that_cannot_start_is_a_failed_run(tmp_path):
    """What the job itself cannot note, the sweep does."""
    submitit = pytest.importorskip("submitit")
    from jaxsae.sweep.launchers.submitted import Submitted

    class Job:
        job_id, state = "7", "FAILED"
        done = lambda self: True

        def result(self):
            raise submitit.core.utils.UncompletedJobError("no result for job 7:\nnode failure")

    executor = type("Executor", (), {"submit": lambda self, task: Job()})()
    folder.make(tmp_path)
    with Submitted(Work(tmp_path, [["a"], ["b"]], {}), executor, 1) as pool:
        assert pool.poll(0) and not pool.poll(0)
    assert "its job 7 ended: UncompletedJobError: no result for job 7: node failure" in folder.failure(tmp_path, "b")


def test_slurm_gets_what_the_flags_say(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    file = tmp_path / "one.py"
    file.write_text("from jaxsae.config import Config\nconfigs = lambda: {'a': Config()}\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    command = ["sweep", str(file), "--out", str(tmp_path / "out"), "--launcher", "slurm"]
    refused(capsys, command, "finds no sbatch here", "--launcher print")
    (tmp_path / "bin").mkdir()
    for program, text in {"sbatch": f"/bin/cp $1 {tmp_path}/script; echo Submitted batch job 12", "srun": ""}.items():
        path = tmp_path / "bin" / program
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    config = SlurmConfig(
        "gpu", hours=1.5, gpus=2, cpus=4, memory_gb=10, setup=("module load cuda",), options=("constraint=h100",)
    )
    folder.make(tmp_path / "out")
    pool = REGISTRY["slurm"].start(Work(tmp_path / "out", [["a"]], {}), config)
    (task,) = [pool._executor.submit(print)]
    assert task.job_id == "12"
    script = (tmp_path / "script").read_text().splitlines()
    for line in ("partition=gpu", "time=90", "gpus-per-node=2", "cpus-per-task=4", "mem=10GB", "constraint=h100"):
        assert f"#SBATCH --{line}" in script
    assert "module load cuda" in script and not any("account" in line for line in script)
