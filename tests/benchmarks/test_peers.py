"""compare_peers.py and its protocol with made-up workers: no environment is made and nothing is measured."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import compare_peers as peers
from benchmarks.peers import environments
from benchmarks.peers.protocol import Worker, WorkerFailed

ROOT = Path(__file__).parents[2]

# A library that prints while it is imported; `does` says what its steps do.
FAKE = """
import os
from benchmarks.peers.protocol import Built

PACKAGES = ("pytest",)
print("imported")

def build(settings):
    does = os.environ["DOES"]
    if does == "refuse":
        raise ValueError("no such shape")
    losses = {"train": iter([3.0, 2.5, 2.0, 1.5, 1.0]), "rise": iter([1.0, 2.0, 3.0, 4.0, 5.0])}
    def step():
        print("stepping")
        if does == "die":
            print("out of memory")
            os._exit(3)
        return next(losses[does]) if does in losses else float(does)
    return Built(step, "cpu")
"""


@pytest.fixture
def env(tmp_path):
    (tmp_path / "fake_worker.py").write_text(FAKE)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


@pytest.fixture
def start(env):
    workers = []

    def start(does):
        workers.append(Worker("fake_worker", env=env | {"DOES": does}))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def test_worker_answers_whatever_its_library_prints(start):
    worker = start("train")
    facts = worker.build({})
    assert facts["device"] == "cpu" and facts["versions"] == {"pytest": pytest.__version__}
    first, second = worker.steps(2), worker.steps(1)
    assert first["losses"] + second["losses"] == [3.0, 2.5, 2.0]
    assert len(first["ms"]) == len(first["cpu_ms"]) == 2 and min(first["ms"]) > 0
    assert second["peak_rss_mb"] > 1 and second["device_peak_mb"] is None


def test_worker_that_raises_or_ends_says_why(start):
    with pytest.raises(WorkerFailed, match="ValueError: no such shape"):
        start("refuse").build({})
    worker = start("die")
    worker.build({})
    with pytest.raises(WorkerFailed, match=r"status 3: .*out of memory"):
        worker.steps(1)
    with pytest.raises(WorkerFailed, match="status 3"):
        worker.steps(1)


class Fake(Namespace):
    """Stands for a Variant, with a worker that `does` something."""

    sparse, module = False, "fake_worker"
    __hash__ = object.__hash__


def test_measure_takes_turns_and_leaves_out_what_does_not_train(env, capsys):
    does = [("jaxsae", "float32", "train"), ("jaxsae", "bfloat16", "train"), ("other", "float32", "train")]
    does += [("other", "float32", what) for what in ("nan", "rise", "die")]
    fakes = [
        Fake(peer=peer, name=what, precision=precision, env=env | {"DOES": what}) for peer, precision, what in does
    ]
    args = Namespace(device="cpu", warmup=1, rounds=2, turn=2)
    rows, versions = peers.measure("small", "on", dict.fromkeys(fakes, sys.executable), args)
    assert [(row["peer"], row["precision"], row["variant"]) for row in rows] == does[:3]
    for row in rows:
        assert row["steps"] == 4 and row["aux"] is True and row["loss_first"] == 3.0 and row["loss_last"] == 1.0
        assert 0 < row["ms_min"] <= row["ms_median"]
        assert row["tokens_per_second"] == pytest.approx(4096e3 / row["ms_min"])
        for name, ours in (("ratio_to_jaxsae", rows[0]), ("ratio_to_jaxsae_bfloat16", rows[1])):
            assert row[name] == row["ms_min"] / ours["ms_min"]
    assert versions == {"pytest": pytest.__version__, "device": "cpu"}
    said = capsys.readouterr().err
    for trouble in ("its loss is not finite", "its loss does not fall: 1 at first, 5 at last", "status 3"):
        assert trouble in said
    json.dumps(rows)
    peers.show(rows)
    assert "other" in capsys.readouterr().out


def test_every_variant_has_a_worker_and_an_environment():
    for variant in peers.variants("cuda"):
        assert (ROOT / f"{variant.module.replace('.', '/')}.py").exists()
        assert variant.peer == "jaxsae" or variant.peer in environments.ENVIRONMENTS


def test_environment_has_pytorch_first_and_is_made_once(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(environments.subprocess, "run", lambda command, **_: ran.append(list(map(str, command))))
    # What would make the folder is not run here.
    (tmp_path / "dictionary-learning").mkdir()
    monkeypatch.setattr(environments.shutil, "rmtree", lambda *_, **__: None)
    make = lambda index: environments.python("dictionary-learning", tmp_path, index)
    interpreter = make("https://an.index")
    assert interpreter == tmp_path / "dictionary-learning" / "bin" / "python"
    venv, torch, package, remove = ran
    assert venv[1:3] == ["-m", "venv"]
    assert torch[3:7] == ["install", environments.TORCH, "--index-url", "https://an.index"]
    assert (
        package[3:6] == ["install", environments.TORCH, "dictionary-learning==0.1.0"] and "--index-url" not in package
    )
    assert remove[3:6] == ["uninstall", "--yes", "torchvision"]
    make("https://an.index")
    assert len(ran) == 4
    make(None)
    assert len(ran) == 8
