"""The command `jaxsae fit`: tables as sweeps write them, logs of runs, and what it refuses."""

import json

import numpy as np
import pytest

from jaxsae import cli
from jaxsae.config import Config, to_json, with_fields
from tests.scaling.test_fits import GPT2, SIZES, figure_1
from tests.scaling.test_frontier import curves


def write(path, columns: dict):
    rows = [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return str(path)


@pytest.fixture
def sizes(tmp_path):
    names = [f"n{n:g}" for n in SIZES]
    return write(tmp_path / "results.csv", {"name": names, "sae.n": SIZES.astype(int), "sae.k": [32] * 8, "nmse": GPT2})


@pytest.fixture
def both(tmp_path):
    """The published figure, with a column for one objective that is no number."""
    columns, loss = figure_1()
    of_table = {"sae.k": columns["k"].astype(int), "sae.n": columns["n"].astype(int), "nmse": loss}
    return write(tmp_path / "both.csv", of_table | {"objective": ["local"] * len(loss)})


def run(capsys, *args) -> str:
    assert cli.main(["fit", *map(str, args)]) == 0
    return capsys.readouterr().out


def refused(capsys, *args) -> str:
    assert cli.main(["fit", *map(str, args)]) == 2
    return capsys.readouterr().err


def test_json_of_a_table(sizes, capsys):
    document = json.loads(run(capsys, sizes, "--law", "power_irreducible", "--json"))
    assert document["law"] == "power_irreducible"
    assert set(document["params"]) == set(document["intervals"]) == set(document["identifiable"]) == {"e", "a", "b"}
    assert document["params"]["e"] == pytest.approx(0.153, abs=1e-3)
    assert all(low < document["params"][name] < high for name, (low, high) in document["intervals"].items())
    assert document["rmse_log"] == pytest.approx(0.0187, abs=1e-4)
    assert set(document["identifiable"].values()) == {True}


def test_text_and_picture_of_a_joint_law(both, tmp_path, capsys):
    text = run(capsys, both, "--law", "joint", "--plot", tmp_path / "joint.png")
    assert "zeta" in text and "floor, k 512" in text and "the floor predicts better" in text
    assert (tmp_path / "joint.png").read_bytes()[:4] == b"\x89PNG"


def test_a_floor_that_is_not_identified_is_no_bare_number(tmp_path, capsys):
    errors = 0.01 * np.random.default_rng(3).standard_normal(8)
    table = write(tmp_path / "t.csv", {"n": SIZES, "nmse": 2 * SIZES**-0.2 * np.exp(errors)})
    text = run(capsys, table, "--law", "power_irreducible")
    line = next(line for line in text.splitlines() if line.startswith("e "))
    assert line.split()[1:3] == ["0", "to"] and "not identified" in line


def test_rows_and_columns_are_chosen(both, sizes, capsys):
    at_64 = json.loads(run(capsys, both, "--law", "power", "--where", "k=64", "objective=local", "--json"))
    assert at_64["points"] == 7 and at_64["params"]["b"] < 0
    against_k = json.loads(run(capsys, both, "--law", "power", "--x", "sae.k", "--where", "n=16384", "--json"))
    assert against_k["x"] == ["sae.k"] and against_k["points"] == 5


def test_tables_that_cannot_be_fitted(both, sizes, tmp_path, capsys):
    law = ("--law", "power")
    assert "sae.k 32, 64, 128, 256, 512" in (said := refused(capsys, both, *law)) and "--where k=32" in said
    assert "no column delta_ce: it has name, sae.n, sae.k, nmse" in refused(capsys, sizes, *law, "--y", "delta_ce")
    assert "leaves no row" in refused(capsys, sizes, *law, "--where", "k=3")
    assert "give COLUMN=VALUE" in refused(capsys, sizes, *law, "--where", "k")
    assert "joint is a law of 2 columns" in refused(capsys, sizes, "--law", "joint", "--x", "n")
    assert "k has 1 different value" in refused(capsys, sizes, "--law", "joint")
    assert "ends in .png" in refused(capsys, sizes, *law, "--plot", tmp_path / "picture")
    assert "cannot be read" in refused(capsys, tmp_path / "none.csv", *law)
    assert "2 tables" in refused(capsys, sizes, both, *law)
    for losses, reason in (
        (["0.3", "", "0.2"], "nmse '' in line 3 (b), which is no number"),
        (["0.3", "nan", "0.2"], "nmse nan in line 3 (b)"),
        (["0.3", "0", "0.2"], "the loss is 0 in point 2"),
    ):
        table = write(tmp_path / "t.csv", {"name": list("abc"), "n": [1, 2, 3], "nmse": losses})
        assert reason in refused(capsys, table, *law)
    (tmp_path / "t.csv").write_text("n,nmse\n1,2\n3\n")
    assert "another number of columns in line 3" in refused(capsys, tmp_path / "t.csv", *law)
    (tmp_path / "t.csv").write_text("n,nmse,n\n1,2,3\n")
    assert "more than one column called n" in refused(capsys, tmp_path / "t.csv", *law)
    (tmp_path / "t.csv").write_text("n,nmse\n")
    assert "no rows" in refused(capsys, tmp_path / "t.csv", *law)


def test_frontier_of_the_logs_of_runs(tmp_path, capsys):
    """The same curves as logs of runs and as one table: the same frontier."""
    sizes = 64 * 2 ** np.arange(8)
    table = {"run": [], "flops": [], "nmse": []}
    for n, (compute, loss) in zip(sizes, curves(sizes)):
        folder = tmp_path / f"n{n}"
        folder.mkdir()
        (folder / "config.json").write_text(to_json(with_fields(Config(), **{"sae.n": int(n)})))
        tokens = compute / (6 * n)
        rows = [{"step": i, "tokens": t, "nmse": y} for i, (t, y) in enumerate(zip(tokens, loss))]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = {"tokens": tokens[-1], "flops": compute[-1], "flops_dense": 2 * compute[-1]}
        (folder / "summary.json").write_text(json.dumps(facts))
        table["run"] += [f"n{n}"] * len(loss)
        table["flops"] += compute.tolist()
        table["nmse"] += loss.tolist()
    folders, law = [tmp_path / f"n{n}" for n in sizes], ("--law", "frontier", "--json")
    of_logs = json.loads(run(capsys, *folders[:-1], folders[-1] / "metrics.jsonl", *law))
    of_table = json.loads(run(capsys, write(tmp_path / "t.csv", table), *law))
    assert of_logs["params"] == pytest.approx(of_table["params"], rel=1e-4) and of_logs["points"] == 6
    dense = json.loads(run(capsys, *folders, *law, "--x", "flops_dense", "--plot", tmp_path / "f.png"))
    b = of_logs["params"]["b"]
    assert dense["params"] == pytest.approx(of_logs["params"] | {"a": of_logs["params"]["a"] * 2**-b}, rel=1e-3)
    assert "a .csv" in refused(capsys, *folders, "--law", "power")
    assert "has no delta_ce: it has step, tokens, nmse" in refused(capsys, *folders, *law, "--y", "delta_ce")
    assert "--x n is unknown" in refused(capsys, *folders, *law, "--x", "n")
    (folders[0] / "summary.json").unlink()
    assert "no run that has ended" in refused(capsys, *folders, *law)


def test_runs_of_a_sweep_that_are_not_done_are_left_out_and_named(tmp_path, capsys):
    columns = {"name": [f"n={n:g}" for n in SIZES], "status": ["done"] * 7 + ["failed"]}
    table = write(tmp_path / "t.csv", columns | {"n": SIZES, "k": [4] * 8, "nmse": [*GPT2[:7], ""]})
    assert cli.main(["fit", table, "--law", "power", "--json", "--x", "sae.n"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["points"] == 7 and "left out: n=98304" in printed.err
    assert "no run that is done" in refused(capsys, table, "--law", "power", "--where", "status=failed")
