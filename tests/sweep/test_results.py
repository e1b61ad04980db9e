"""results.csv, and what a sweep shows while it runs."""

import csv
import io
import json

import pytest

from jaxsae.config import Config, with_fields
from jaxsae.sweep import folder, product, results
from jaxsae.sweep.board import Board, duration


@pytest.fixture
def runs():
    return product(with_fields(Config(), tokens=4096), {"sae.n": [64, 128], "e2e.kl_coef": [1.0, 2.0]})


def finished(out, name, **summary):
    (out / name).mkdir(parents=True)
    (out / name / "summary.json").write_text(json.dumps(summary))


def test_a_row_has_what_varies_and_all_metrics(runs, tmp_path):
    folder.make(tmp_path)
    first, second, third, fourth = runs
    metrics = {"step": 2, "tokens": 4000, "nmse": 0.25, "eval_text": ["a.txt", "b.txt"], "kl": None, "n2g": {"f1": 1}}
    finished(tmp_path, first, **metrics, tokens_per_second=800.0)
    finished(tmp_path, third, **metrics, tokens_per_second=None)
    folder.note_failure(tmp_path, second, "loss became nan,\n\n at step 3")
    states = {name: folder.state(tmp_path, name, name == fourth) for name in runs}
    assert list(states.values()) == ["done", "failed", "done", "running"]
    summaries = {name: folder.summary(tmp_path, name) for name in (first, third)}
    results.write(results.rows(results.varied(runs), states, summaries, tmp_path), tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    # Another field ends in kl_coef too, so this one keeps its whole name.
    columns = "name status n k e2e.kl_coef seed step tokens nmse eval_text kl tokens_per_second seconds error"
    assert list(rows[0]) == columns.split()
    assert [row["n"] for row in rows] == ["64", "64", "128", "128"] and rows[0]["e2e.kl_coef"] == "1.0"
    assert (rows[0]["seconds"], rows[0]["eval_text"], rows[0]["kl"]) == ("5.0", "a.txt b.txt", "")
    assert rows[1]["error"] == "loss became nan, at step 3" and rows[1]["nmse"] == "" == rows[2]["seconds"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_states_are_read_from_files(tmp_path):
    folder.make(tmp_path)
    state = lambda **more: folder.state(tmp_path, "a", **more)
    assert state() == "waiting" and state(in_hand=True) == "running"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    assert state() == "stopped"
    folder.note_failure(tmp_path, "a", "reason")
    assert state(in_hand=True) == "failed" and folder.failure(tmp_path, "a") == "reason"
    folder.forget_failure(tmp_path, "a")
    (tmp_path / "a" / "summary.json").write_text("{}")
    assert state() == "done" and folder.failure(tmp_path, "a") is None


def test_the_newest_whole_row_of_a_log_is_read(tmp_path):
    path = tmp_path / "a" / "metrics.jsonl"
    assert folder.last_row(tmp_path, "a") == {}
    path.parent.mkdir()
    long = [json.dumps({"step": step, "text": "x" * 100}) for step in range(500)]
    path.write_text("\n".join(long) + '\n{"step": 50')
    assert folder.last_row(tmp_path, "a")["step"] == 499
    path.write_text('{"step"')
    assert folder.last_row(tmp_path, "a") == {}


def test_the_time_left_is_that_of_the_jobs(runs, tmp_path):
    """A run that has not begun is as fast as the one most like it; runs of one job are trained side by side."""
    one, other, big, bigger = runs
    folder.make(tmp_path)
    (tmp_path / one).mkdir()
    row = {"tokens": 2096, "tokens_per_second": 1000.0, "nmse": 0.5}
    (tmp_path / one / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    states = {one: "running", other: "waiting", big: "done", bigger: "waiting"}
    summaries = {big: {"tokens_per_second": 512.0, "nmse": 0.125, "l0": 32.0}}

    def shown(jobs, at_once, stream=None, **before):
        stream = stream or io.StringIO()
        board = Board(runs, tmp_path, jobs, at_once, stream)
        if before:
            board.show(states | before, {})
        board.show(states, summaries)
        return stream.getvalue()

    # 2 seconds to go, 4.1 for the second, 8 for the last.
    assert "4 runs: 1 done, 1 running, 2 waiting; 1,000 tokens/s; about 0:14 left" in shown([[n] for n in runs], 1)
    assert "about 0:08 left" in shown([[n] for n in runs], 4)
    assert "about 0:12 left" in shown([[one, other], [big], [bigger]], 1)
    assert f"done     {big}  nmse 0.125  l0 32\n" in shown([[n] for n in runs], 1, **{big: "running"})


def test_on_a_terminal_what_runs_is_drawn_in_place(runs, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    one, other, *_ = runs
    stream, waiting = Terminal(), dict.fromkeys(runs, "waiting")
    (tmp_path / one).mkdir(parents=True)
    (tmp_path / one / "metrics.jsonl").write_text('{"tokens": 1024, "tokens_per_second": 512.0, "nmse": 0.5}\n')
    board = Board(runs, tmp_path, [[name] for name in runs], 2, stream)
    board.show(waiting | {one: "running", other: "running"}, {})
    assert f"\n  {one}   25%  512 tokens/s  0:06 left  nmse 0.500\n  {other}  starting\n" in stream.getvalue()
    board.show(waiting | {one: "stopped", other: "running"}, {})
    # Up over three lines; what is over stays above what is drawn again.
    last = stream.getvalue().rpartition("\x1b[3F")[2]
    assert last.startswith(f"\x1b[Jstopped  {one}\n4 runs: 1 running, 2 waiting, 1 stopped") and last.count("\n") == 3


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 45, 723, 11045)] == ["0:00", "0:45", "12:03", "3:04:05"]
