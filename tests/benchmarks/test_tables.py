"""Tables of small results, timing in turns, and a benchmark from its command line to its kept rows."""

import json
import sys

import pytest

from benchmarks import common, table
from benchmarks.peers import jaxsae_worker

MANIFEST = {"date": "2026-01-02", "commit": "abc", "cpu": "A Processor", "cores": 2, "device": "cpu"}


def peer_row(peer, aux, ms, ratio):
    return {
        "shape": "small",
        "peer": peer,
        "version": "1.0",
        "variant": "core",
        "aux": aux,
        "ms_min": ms,
        "tokens_per_second": 4096e3 / ms,
        "peak_rss_mb": 600.4,
        "device_peak_mb": None,
        "ratio_to_jaxsae": ratio,
    }


@pytest.fixture
def results(tmp_path):
    step = {
        "shape": "big",
        "aux": True,
        "dead": 0.1,
        "select": "float32",
        "step_ms": 1234.5,
        "floor_ms": 1000.0,
        "ratio": 1.2345,
        "tokens_per_second": 1659.0,
        "peak_mb": 1500.0,
        "compile_s": 2.34,
    }
    off, on = peer_row("jaxsae", False, 80.0, 1.0), peer_row("jaxsae", True, 160.0, 1.0)
    peers = [off, peer_row("other", False, 120.0, 1.5), on]
    for name, rows in (("step-big-cpu", [step]), ("peers-small-cpu", peers), ("step-small-cpu", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"manifest": MANIFEST, "rows": rows}))
    return tmp_path


def test_tables(results):
    first, peers, second, step = table.tables(results).split("\n\n")
    assert first.startswith("**small** (d 128 n 4096") and "A Processor, 2 cores, 2026-01-02, commit abc" in first
    assert peers.splitlines()[2:] == [
        "| jaxsae 1.0, core | 80.0 | 51,200 | 1.00 | 160 | 25,600 | 1.00 | 600 |",
        "| other 1.0, core | 120 | 34,133 | 1.50 |  |  |  | 600 |",
    ]
    assert second.startswith("**big**")
    assert step.splitlines()[2:] == ["| on, 10% dead | float32 | 1,234 | 1,000 | 1.23 | 1,659 | 1,500 | 2.3 |"]
    for lines in (peers.splitlines(), step.splitlines()):
        assert len({line.count("|") for line in lines}) == 1


def test_write_replaces_what_stands_between_the_markers(results, monkeypatch):
    readme = results / "README.md"
    readme.write_text(f"before\n\n{table.START}\nold\n{table.END}\n\nafter\n")
    monkeypatch.setattr(sys, "argv", ["table.py", "--results", str(results), "--write", str(readme)])
    table.main()
    once = readme.read_text()
    assert once == f"before\n\n{table.START}\n\n{table.tables(results)}\n\n{table.END}\n\nafter\n"
    table.main()
    assert readme.read_text() == once
    readme.write_text("no markers\n")
    with pytest.raises(SystemExit, match="put one line"):
        table.main()
    assert readme.read_text() == "no markers\n"


def test_no_results(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["table.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="no results"):
        table.main()


def test_in_turns():
    calls = []
    seconds = common.in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warmup=2)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_a_benchmark_prints_tables_and_keeps_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    args = common.arguments("doc", ["tiny", "huge"], ["tiny"], rounds=2).parse_args(["--keep"])
    measure = lambda shape, args: iter([[{"way": "a", "ms": 1.5}], [{"way": "slow one", "ms": 20.0}]])
    columns = {"way": lambda row: row["way"], "ms": lambda row: f"{row['ms']:.1f}"}
    common.run("mine", args, measure, lambda rows: common.print_table(columns, rows))
    assert capsys.readouterr().out.splitlines() == ["way   ms", "a    1.5", "way         ms", "slow one  20.0"]
    (path,) = tmp_path.glob("mine-tiny-*.json")
    kept = json.loads(path.read_text())
    assert kept["rows"] == [{"way": "a", "ms": 1.5}, {"way": "slow one", "ms": 20.0}]
    assert kept["manifest"]["jax"]


def test_jaxsae_worker_trains():
    """A tiny step with AuxK on, of the recipe that all benchmarks of jaxsae share."""
    settings = {"d": 16, "n": 64, "k": 4, "B": 32, "k_aux": 8, "aux": True, "dead": 0.25, "lr": 1e-3}
    built = jaxsae_worker.build({**settings, "precision": "float32"})
    losses = [built.step() for _ in range(4)]
    assert losses[-1] < losses[0]


def test_end_to_end_steps_have_a_table(tmp_path):
    row = {"shape": "gpt2", "sizes": "8 contexts", "variant": "e2e, in chunks", "step_ms": 1234.0, "floor_ms": 1100.0}
    row |= {"ratio": 1.12, "tokens_per_second": 415.0, "temporaries_mb": 900.0, "compile_s": 9.0}
    (tmp_path / "e2e-gpt2-cpu.json").write_text(json.dumps({"manifest": MANIFEST, "rows": [row]}))
    text = table.tables(tmp_path)
    assert "**gpt2** (8 contexts) on A Processor" in text
    assert "| e2e, in chunks | 1,234 | 1,100 | 1.12 | 415 | 900 | 9.0 |" in text
