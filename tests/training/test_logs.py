"""Log rows: to every sink that is asked for, by process 0 only, none twice after a kill."""

import json
import sys
import types

import jax
import pytest

from jaxsae.errors import BadInput
from jaxsae.sae.activation_functions.interface import Count
from jaxsae.training.logs import METRICS, LogConfig, Logs, check_packages, read_metrics

ROWS = [{"step": s, "tokens": 10 * s, "loss": 1.0 / s} for s in (1, 2, 3)]


def write(folder, rows, step=0, **config):
    with Logs(folder, LogConfig(**config), step, {"sae": {"n": 4}}) as logs:
        for row in rows:
            logs.write(row)


def test_rows_behind_the_resumed_step_are_written_again(tmp_path):
    write(tmp_path, ROWS)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "tok')
    assert read_metrics(tmp_path / METRICS) == ROWS
    write(tmp_path, [{"step": 3, "tokens": 30, "loss": 9.0}], step=2)
    assert [json.loads(line)["loss"] for line in (tmp_path / METRICS).read_text().splitlines()] == [1.0, 0.5, 9.0]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(tmp_path, ROWS, tensorboard=True, wandb="project")
    assert not list(tmp_path.iterdir())


def test_other_sinks_get_every_row(tmp_path, monkeypatch):
    seen, closed = [], []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, tokens):
            seen.append((name, value, tokens))

        def close(self):
            closed.append("tensorboard")

    run = types.SimpleNamespace(log=lambda row, step: seen.append((row, step)), finish=lambda: closed.append("wandb"))
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **kw: run))
    write(tmp_path, ROWS, tensorboard=True, wandb="project")
    assert ("loss", 0.5, 20) in seen
    assert (ROWS[2], 3) in seen
    assert sorted(closed) == ["tensorboard", "wandb"]


def test_what_happens_to_too_many_tokens_is_told_once(tmp_path, capsys):
    count = Count(each=None, limit=0.001, warning="tokens were cut: give more")
    with Logs(tmp_path, LogConfig(), 0, {}, {"cut": count}) as logs:
        for step, share in enumerate((0.0, 0.001, 0.0123, 0.5), 1):
            logs.write({"step": step, "tokens": step, "cut": share})
    message = "jaxsae: step 3: 1.23% of tokens were cut: give more (cut in metrics.jsonl)\n"
    assert capsys.readouterr().err == message
    assert [row["cut"] for row in read_metrics(tmp_path / METRICS)] == [0.0, 0.001, 0.0123, 0.5]


@pytest.mark.parametrize("flag, package", [({"tensorboard": True}, "tensorboardX"), ({"wandb": "p"}, "wandb")])
def test_a_missing_package_is_bad_input(monkeypatch, flag, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInput, match=r"pip install .jaxsae\[logging\]"):
        check_packages(LogConfig(**flag))
