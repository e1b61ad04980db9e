"""Runs that are killed, stopped or damaged end as if nothing had been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import jaxsae
from jaxsae.cli import main
from jaxsae.distributed.mesh import make_mesh
from jaxsae.sae.config import SAEConfig
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.program import make_program
from tests import configs
from tests.marks import slow


def start(folder, flags, **env):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "jaxsae.cli", "train", "--run", str(folder), "--resume", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})


def wait_for_step(process, folder, step):
    """Until metrics.jsonl says that `step` was made, or the process ends."""
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.005)


def test_killed_runs_end_with_the_same_bytes(flags, finished, tmp_path):
    """SIGKILL at two random steps; the finished file equals that of a run nobody disturbed."""
    disturbed = tmp_path / "disturbed"
    for step in sorted(random.sample(range(10, 50, 10), 2)):
        process = start(disturbed, flags)
        wait_for_step(process, disturbed, step)
        process.kill()
        process.wait()
    assert start(disturbed, flags).wait() == 0
    same = lambda name: (finished / name).read_bytes() == (disturbed / name).read_bytes()
    assert same("sae/sae.safetensors") and same("sae/config.json")
    rows = [json.loads(line)["step"] for line in (disturbed / "metrics.jsonl").read_text().splitlines()]
    assert rows == [*range(10, 58, 10), 58], "no row twice, none missing"


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)], ids=str)
def test_signals_save_and_say_so(flags, tmp_path, number):
    folder = tmp_path / "run"
    process = start(folder, [*flags, "--tokens", "3000000"])
    wait_for_step(process, folder, 20)
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == 128 + number, error
    saved = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert f"saved at step {saved}" in error and "Traceback" not in error


@pytest.mark.slow
def test_resumed_on_another_mesh(flags, tmp_path):
    """The batches are the same on every mesh, so only rounding (and near-ties of the top-k) can differ."""
    flags = [*flags, "--tokens", "10240", "--keep-checkpoints", "100"]
    assert main(["train", "--run", str(tmp_path / "one"), *flags]) == 0
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    for later in (tmp_path / "other" / "checkpoints").iterdir():
        if later.name != "10":
            shutil.rmtree(later)
    assert main(["train", "--run", str(tmp_path / "other"), *flags, "--resume", "--mesh", "2", "4"]) == 0
    one, other = (json.loads((tmp_path / f / "summary.json").read_text()) for f in ("one", "other"))
    assert one["step"] == other["step"] == 40
    assert other["nmse"] == pytest.approx(one["nmse"], rel=1e-3)
    assert other["kl"] == pytest.approx(one["kl"], rel=1e-2)


def test_damaged_newest_checkpoint(flags, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    for path in (folder / "checkpoints" / "58").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1])
    assert main(["train", "--run", str(folder), *flags, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "step 58" in said
    assert "the checkpoint of step 50 is taken" in said
    same = lambda name: (folder / name).read_bytes() == (finished / name).read_bytes()
    assert same("sae/sae.safetensors")


def test_full_disk(flags, tmp_path):
    """On a file system of 600 kB: one line, status 2, and the checkpoints that were made before are whole."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        process = start(small / "run", [*flags, "--keep-checkpoints", "100"])
        error = process.communicate()[1]
        assert process.returncode == 2, error
        assert error.splitlines()[-1].startswith("jaxsae: the disk is full")
        assert "Traceback" not in error
        mesh = make_mesh(1, 1)
        with Checkpoints(small / "run" / "checkpoints", 100) as checkpoints:
            assert checkpoints.steps()[0] == 10
            program = make_program(SAEConfig(64, 4), configs.training(tokens=14848, batch_size=256), 32)
            assert int(checkpoints.restore(program.abstract_state(mesh)).step) == checkpoints.steps()[-1]
    finally:
        subprocess.run(["umount", small], check=True)


def test_resuming_a_finished_run_changes_nothing(flags, finished):
    before = {p: (finished / p).read_bytes() for p in ("sae/sae.safetensors", "summary.json", "metrics.jsonl")}
    assert main(["train", "--run", str(finished), "--resume", *flags]) == 0
    assert {p: (finished / p).read_bytes() for p in before} == before


@pytest.mark.slow
def test_an_end_to_end_run_ends_with_the_same_bytes_when_it_is_stopped(flags, finished, tmp_path):
    """From a saved autoencoder, whose settings it takes over."""
    model = [*flags[: flags.index("--sae.n")], *"--batch-size 256 --eval-tokens 1024 --mesh 1 1".split()]
    run = ["--init-from", str(finished), "--objective", "finetune_kl", "--hook", "blocks.0.hook_resid_mid", *model]
    run += "--lr 1e-4 --schedule linear --lr-end 0 --tokens 5120 --checkpoint-every 7".split()
    # After steps 6, 12 and 18, before and after the one at which it is stopped.
    run += "--resample-every 1536 --dead-after 512".split()
    assert main(["train", "--run", str(tmp_path / "whole"), *run]) == 0
    process = start(tmp_path / "stopped", [*run, "--log-every", "1"])
    wait_for_step(process, tmp_path / "stopped", 9)
    process.kill()
    process.communicate()
    assert main(["train", "--run", str(tmp_path / "stopped"), "--resume", *run, "--log-every", "1"]) == 0
    about = jaxsae.describe(tmp_path / "whole")
    assert about["objective"] == "finetune_kl" and about["n"] == 64 and about["spec"]["k"] == 4
    files = [tmp_path / name / "sae" / "sae.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()
