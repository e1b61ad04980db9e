"""Several processes on this machine, of four simulated devices each, that talk over gloo."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsae
from jaxsae.cli import main
from jaxsae.config import Config, differences, from_json, to_json
from jaxsae.distributed.mesh import make_mesh
from jaxsae.distributed.processes import DistributedConfig
from jaxsae.errors import BadInput
from jaxsae.sae.config import SAEConfig
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.program import make_program
from tests import configs, distributed_float64


def environment(**more):
    devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    return {**os.environ, **devices, "PYTHONPATH": str(Path(__file__).parents[1]), **more}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(*command, explicit=True, second=(), cwd=None, **env):
    """Two processes of `command`, which find each other by flags, or by what Slurm says in the environment.

    The second one has the flags `second` too.
    """
    port = free_port()
    flags = lambda i: f"--distributed --coordinator 127.0.0.1:{port} --processes 2 --process {i}".split()
    more = lambda i: [*(flags(i) if explicit else ["--distributed"]), *(second if i else ())]
    slurm = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    each = lambda i: {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "JAX_COORDINATOR_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "jaxsae.cli", *map(str, command), *more(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment(**env, **({} if explicit else slurm | each(i))),
        )
        for i in (0, 1)
    ]


def finish(both, seconds=300):
    """(their statuses, stdouts, stderrs)."""
    try:
        said = [p.communicate(timeout=seconds) for p in both]
    finally:
        for p in both:
            p.kill()
    return [p.returncode for p in both], [out for out, _ in said], [error for _, error in said]


def wait_for_step(both, folder, step):
    """Until metrics.jsonl says that `step` was made."""
    path = folder / "metrics.jsonl"
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        assert all(p.poll() is None for p in both), finish(both)
        time.sleep(0.005)


def last_line(error):
    return error.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def flags(tiny_lm, tiny_text, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    run = f"--lm {tiny_lm} --text {tiny_text} --cache {cache} --context 32 --sae.n 64 --sae.k 4 --batch-size 256"
    run += " --tokens 10240 --checkpoint-every 20 --buffer-batches 4 --eval-tokens 2048 --lr 1e-3 --mesh 2 4"
    return [*run.split(), "--ema", "0.9", "--auxk-coef", "0"]


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """A finished run of two processes, which named its folder, and what they said."""
    folder = tmp_path_factory.mktemp("here")
    said = finish(start("train", *flags, cwd=folder))
    assert said[0] == [0, 0], said
    (run,) = (folder / "runs").iterdir()
    return run, said


def test_a_run_of_two_processes(finished):
    run, (_, out, error) = finished
    assert run.name.endswith("-topk-n64-k4") and f"saved in runs/{run.name}" in out[0] and "nmse" in out[0]
    # Gloo itself prints, in all of them, from threads that break into each other's lines: so words, not lines.
    gloo = set("gloo rank is connected to peer ranks expected number of".split())
    assert set(re.findall("[a-z]+", out[1].lower())) <= gloo, "process 0 speaks for all"
    assert "training" in error[0] and "training" not in error[1], "process 0 speaks for all"
    names = {p.name for p in run.iterdir()}
    files = "config.json manifest.json metrics.jsonl summary.json training.png checkpoints sae"
    assert names == set(files.split())
    manifest, config = (json.loads((run / f).read_text()) for f in ("manifest.json", "config.json"))
    assert manifest["process_count"] == 2 and manifest["mesh"] == {"data": 2, "latent": 4}
    assert "distributed" not in config
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == [10, 20, 30, 40]
    assert sorted(int(p.name) for p in (run / "checkpoints").iterdir()) == [20, 40]


def test_one_process_resumes(flags, finished, tmp_path):
    """What two processes wrote, one restores on any mesh, and exports and measures as they did."""
    run = shutil.copytree(finished[0], tmp_path / "run")
    program = make_program(SAEConfig(64, 4), configs.training(tokens=10240, batch_size=256), 32)
    states = []
    for shape in ((2, 4), (8, 1), (1, 1)):
        with Checkpoints(run / "checkpoints", 2) as checkpoints:
            state = checkpoints.restore(program.abstract_state(make_mesh(*shape)))
        states.append([np.asarray(a) for a in jax.tree.leaves((state.params, state.opt, state.ema, state.idle))])
    for other in states[1:]:
        for a, b in zip(states[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    shutil.rmtree(run / "sae")
    assert main(["train", "--run", str(run), "--resume", *flags]) == 0
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (run, finished[0]))
    for name in ("eval_text", "eval_split"):
        assert one.pop(name) == two.pop(name)
    assert one == pytest.approx(two, rel=1e-5, abs=1e-6)
    one, two = ((folder / "sae" / "sae.safetensors").read_bytes() for folder in (run, finished[0]))
    assert one == two


@pytest.mark.slow
def test_signals_and_deaths(flags, finished, tmp_path):
    """SIGTERM to one stops both after one step; a killed one takes the other along; the end is as if undisturbed."""
    run = tmp_path / "run"
    command = ["train", "--run", run, "--resume", *flags]

    both = start(*command)
    wait_for_step(both, run, 10)
    both[1].send_signal(signal.SIGTERM)
    status, _, error = finish(both)
    assert status == [143, 143], error
    saved = max(int(p.name) for p in (run / "checkpoints").iterdir())
    for i, text in enumerate(error):
        assert last_line(text) == f"jaxsae: process {i} of 2: SIGTERM: saved at step {saved} of 40"

    both = start(*command)
    wait_for_step(both, run, 30)
    # The other way round it may take until process 0 misses a heartbeat, which is too long for a test.
    both[0].kill()
    began = time.monotonic()
    status, _, error = finish(both)
    assert time.monotonic() - began < 60
    # JAX may be faster than we are, and aborts.
    assert status[1] in (1, -signal.SIGABRT), error
    assert "another process is gone" in error[1] or "another task died" in error[1], error

    status, _, error = finish(start(*command, explicit=False))
    assert status == [0, 0], error
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == [10, 20, 30, 40]
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        one, other = (getattr(jaxsae.load(folder), name) for folder in (run, finished[0]))
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def float64():
    """float64 arrays in all threads: Orbax has some."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.slow
def test_float64_losses_are_those_of_one_process(float64, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "tests.distributed_float64", f"127.0.0.1:{port}", "2"]
    both = [
        subprocess.Popen(
            [*command, str(i), str(tmp_path / "checkpoints")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(JAX_ENABLE_X64="1"),
        )
        for i in (0, 1)
    ]
    state, losses = distributed_float64.run(make_mesh(8, 1))
    end_to_end = distributed_float64.run_end_to_end(make_mesh(4, 2))
    status, out, error = finish(both)
    assert status == [0, 0], error
    said = json.loads(out[0].splitlines()[-1])
    assert said["dtype"] == "float64" and any(auxk > 0 for _, auxk, *_ in losses)
    np.testing.assert_allclose(said["losses"], losses, rtol=1e-12)
    np.testing.assert_allclose(said["end_to_end"], end_to_end, rtol=1e-12)
    for shape in ((2, 4), (1, 1)):
        with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
            restored = checkpoints.restore(distributed_float64.like(make_mesh(*shape)))
        for a, b in zip(jax.tree.leaves(restored.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-9, atol=1e-12)


def test_bad_input_ends_all_processes(flags, tmp_path):
    """Whoever finds it, all say it and end with status 2."""
    new = ["train", "--run", tmp_path / "run", *flags]
    status, _, error = finish(start(*new, second=["--hook", "blocks.7.hook_resid_post"]))
    assert status == [2, 2]
    assert "blocks.7" in last_line(error[1]) and last_line(error[0]).endswith("(says process 1)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"coordinator": "host:1"}, "--coordinator without --distributed"),
        ({"distributed": True, "coordinator": "host:1"}, "--coordinator without --processes --process"),
        ({"distributed": True, "coordinator": "host", "processes": 2, "process": 0}, "host: give HOST:PORT"),
        ({"distributed": True, "coordinator": "host:0", "processes": 2, "process": 0}, "host:0: give HOST:PORT"),
        ({"distributed": True, "coordinator": "host:1", "processes": 2, "process": 2}, "--process is 2"),
    ],
)
def test_flags_that_contradict_each_other(flags, said):
    with pytest.raises(BadInput, match=said):
        DistributedConfig(**flags)


def test_where_no_cluster_says_so():
    command = [sys.executable, "-m", "jaxsae.cli", "train", "--distributed"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    assert "found no Slurm" in last_line(done.stderr) and "--coordinator HOST:PORT" in last_line(done.stderr)


def test_the_number_of_processes_is_no_part_of_a_run(tmp_path):
    two = Config(distributed=DistributedConfig(True, "host:1", 2, 1))
    (tmp_path / "config.json").write_text(to_json(two))
    assert from_json(tmp_path / "config.json") == Config()
    assert differences(Config(), two) == []
