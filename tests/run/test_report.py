"""The page of an evaluation, of several side by side, and SAEBench's file: what eval.json says, readable."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from jaxsae import evals
from jaxsae.cli import main
from jaxsae.errors import BadInput
from jaxsae.run import report, saebench
from jaxsae.run.results import save

RESULTS = {
    "step": 7,
    "tokens": 1000,
    "data_fingerprint": "abc",
    "eval_text": ["a.txt"],
    "eval_split": "all",
    "eval_tokens": 320,
    "eval_context": 32,
    "nmse": 0.125,
    "nmse_se": 0.0123,
    "raw_nmse": 0.25,
    "l0": 32.0,
    "kl": 0.2,
    "kl_zero": 4.0,
    "kl_by_position": None,
    "ce_original": 2.0,
    "ce_zero": 8.0,
    "ce_substituted": 2.3,
    "ce_recovered": 0.95,
    "eval_dead_fraction": 0.25,
    "refinement": {"tokens": 320, "nmse": {"before": 0.125, "after": 0.1}, "protocol": "<as it is>"},
}


def rows(page: str) -> dict[str, list[str]]:
    """{first cell: the other cells} of all tables."""
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    return {first: rest for first, *rest in cells}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one").mkdir()
    save(RESULTS, {}, (), tmp_path / "one", tmp_path / "one")
    return tmp_path / "one"


def test_the_page_says_what_was_measured_how_and_what_it_means(folder):
    page = (folder / "eval" / "report.html").read_text()
    table = rows(page)
    assert table["nmse"] == ["0.125 ± 0.012", "0.25"] and table["l0"] == ["32", ""]
    assert table["nmse.after"] == ["0.1"] and table["evaluated on"] == ["a.txt"]
    meaning = " ".join(evals.EVALUATIONS["standard"].meanings["kl"].split())
    assert f"<dt>kl</dt><dd>{meaning}</dd>" in page and "&lt;as it is&gt;" not in page
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page), "nothing is loaded from elsewhere"
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_several_evaluations_stand_side_by_side(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "eval.json").write_text(json.dumps(RESULTS | {"nmse": 0.5, "failed": {"refinement": "<no> memory"}}))
    assert main(["compare", str(folder), str(other), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert rows(page)["nmse"][0].startswith("0.125") and rows(page)["nmse"][1].startswith("0.5")
    assert "other: failed: &lt;no&gt; memory" in page
    assert main(["compare", str(folder), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no eval.json: evaluate it first" in capsys.readouterr().err
    with pytest.raises(BadInput, match="give each folder once"):
        report.compare([folder, folder], tmp_path / "out")


def test_results_of_the_same_evaluation_stay_and_a_failure_is_forgotten_once_it_is_measured(folder):
    again = {name: RESULTS[name] for name in RESULTS if name != "refinement"}
    have = save(again | {"failed": {"n2g": "reason"}}, {}, (), folder, folder)
    assert have["refinement"] == RESULTS["refinement"] and "n2g" in have["failed"]
    assert "failed: reason" in (folder / "eval" / "report.html").read_text()
    assert "failed" not in save(again, {}, (), folder, folder)
    assert "refinement" not in save(again | {"step": 8}, {}, (), folder, folder)


def test_an_evaluation_that_fails_leaves_the_others_and_ends_with_status_1(monkeypatch, tmp_path, capsys):
    def fails(subject, config):
        raise ValueError("no such number")

    broken = {
        name: replace(evaluation, run=fails) for name, evaluation in evals.EVALUATIONS.items() if name == "geometry"
    }
    monkeypatch.setattr(evals, "EVALUATIONS", evals.EVALUATIONS | broken)
    flags = "--activations synthetic:zipf --sae.n 32 --sae.k 4 --tokens 4096 --batch-size 512 --eval-tokens 1024"
    assert main(["train", "--run", str(tmp_path / "run"), "--mesh", "1", "1", *flags.split()]) == 0
    run = ["eval", str(tmp_path / "run"), "--tokens", "1024", "--mesh", "1", "1", "--metrics"]
    assert main([*run, "geometry", "standard"]) == 1
    assert "geometry failed: ValueError: no such number" in capsys.readouterr().err
    have = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert have["failed"] == {"geometry": "ValueError: no such number"} and have["nmse"] > 0


def test_saebench_reads_the_numbers_under_its_own_names():
    core = saebench.core(RESULTS)
    metrics = core["eval_result_metrics"]
    assert core["eval_type_id"] == "core" and core["eval_result_details"] == []
    behaviour = metrics["model_behavior_preservation"]
    assert behaviour == {"kl_div_score": 0.95, "kl_div_with_ablation": 4.0, "kl_div_with_sae": 0.2}
    assert metrics["model_performance_preservation"]["ce_loss_with_ablation"] == 8.0
    assert metrics["sparsity"] == {"l0": 32.0, "l1": -1.0} and metrics["misc_metrics"]["frac_alive"] == 0.75
    assert all(np.isscalar(value) for category in metrics.values() for value in category.values()), "flat inside"
    json.dumps(core)
    older = {name: value for name, value in RESULTS.items() if name != "eval_dead_fraction"}
    assert saebench.core(older)["eval_result_metrics"]["misc_metrics"]["frac_alive"] == -1


@pytest.mark.slow
def test_a_browser_shows_the_page_on_a_phone(folder):
    chromium = shutil.which("chromium") or pytest.skip("there is no chromium")
    picture = folder / "phone.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=390,1200"]
    command += [f"--screenshot={picture}", f"file://{folder / 'eval' / 'report.html'}"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (1200, 390) and len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20
