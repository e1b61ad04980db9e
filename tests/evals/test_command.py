"""`jaxsae eval` of a run and of its export: what it reads, what it writes, and what is no reason to refuse."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxsae import config as configs
from jaxsae.cli import main
from jaxsae.config import Config
from jaxsae.data.activations import TextSource
from jaxsae.errors import BadInput
from jaxsae.lm import load, load_tokenizer
from jaxsae.run import eval_config
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.evaluate import _possible, evaluation_mesh

POSITIONS = 16


@pytest.fixture(scope="module")
def run(tiny_lm, tiny_text, tmp_path_factory):
    """A run of a few steps with everything that an export must remember: documents, precision, another context."""
    folder, cache = tmp_path_factory.mktemp("runs") / "run", tmp_path_factory.mktemp("cache")
    flags = f"--lm {tiny_lm} --text {tiny_text} --documents 25 --lm-precision bfloat16 --cache {cache} --ema 0.5"
    flags += f" --context {POSITIONS} --sae.n 64 --sae.k 4 --batch-size 256 --tokens 1024 --buffer-batches 2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAE_CACHE", str(cache))
        assert main(["train", "--run", str(folder), "--mesh", "1", "1", "--eval-tokens", "320", *flags.split()]) == 0
        yield folder


def evaluated(folder, tmp_path, *flags):
    """What eval.json says."""
    assert main(["eval", str(folder), "--tokens", "320", "--out", str(tmp_path), *flags]) == 0
    return read(tmp_path / "eval.json")


def read(path):
    return json.loads(path.read_text())


def numbers(metrics):
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def test_a_run_measures_what_its_summary_says(run, tmp_path, capsys):
    have, summary = evaluated(run, tmp_path, "--mesh", "1", "1"), json.loads((run / "summary.json").read_text())
    assert numbers(summary).items() <= numbers(have).items() and have["eval_text"] == summary["eval_text"]
    assert have["eval_tokens"] == 320 and have["eval_split"] == "held_out"
    assert all(have[name] > 0 for name in ("nmse_se", "delta_ce_se", "kl_se", "fvu", "raw_no_pos0_fvu"))
    assert len(have["nmse_by_position"]) == len(have["raw_nmse_by_position"]) == POSITIONS
    assert "ce_recovered" in capsys.readouterr().out


def test_an_export_reads_the_documents_and_the_precision_of_its_run(run, tmp_path):
    """Wherever it lies. Of all documents, or in float32, the numbers would be others."""
    export = shutil.copytree(run / "sae", tmp_path / "export")
    have, want = evaluated(export, tmp_path, "--mesh", "1", "1"), json.loads((run / "summary.json").read_text())
    assert {"nmse", "kl", "ce_original", "fvu", "dead_fraction", "flops", "step"} <= numbers(have).keys()
    assert numbers(have) == pytest.approx({name: want[name] for name in numbers(have)}, rel=1e-6)
    other = evaluated(export, tmp_path, "--mesh", "1", "1", "--documents", "40")
    assert other["ce_original"] != pytest.approx(want["ce_original"], rel=1e-6)
    assert not any(name.startswith("raw_") for name in have)


def test_no_limit_of_training_refuses_an_evaluation(run, tiny_text, tmp_path):
    """Less text than one training batch of 256 tokens, all of it, and meshes over which that batch does not divide."""
    text = tmp_path / "short.txt"
    text.write_text("\n<|endoftext|>\n".join(tiny_text.read_text().split("\n<|endoftext|>\n")[0][:90] for _ in "ab"))
    have = [evaluated(run, tmp_path, "--text", str(text), "--mesh", *mesh) for mesh in (("1", "1"), ("3", "2"))]
    assert 0 < have[0]["eval_tokens"] < 256 and have[0]["eval_split"] == "all"
    assert have[0]["eval_text"] == [str(text)]
    # bfloat16 products of other shapes round elsewhere.
    assert numbers(have[0]) == pytest.approx(numbers(have[1]), rel=1e-2, abs=1e-3)
    held_out = evaluated(run, tmp_path, "--text", str(text), "--mesh", "1", "1", "--split", "held_out")
    assert held_out["eval_tokens"] < have[0]["eval_tokens"]


def test_a_text_that_is_given_is_used_whole(run, tiny_lm, tiny_text, tmp_path, capsys, monkeypatch):
    """Without --tokens, however few tokens are evaluated of a run's own text."""
    monkeypatch.setattr(eval_config, "TOKENS", 320)
    documents = tiny_text.read_text().split("\n<|endoftext|>\n")[3:9]
    text = tmp_path / "test.txt"
    text.write_text("\n<|endoftext|>\n".join(documents))
    evaluate = lambda *flags: main(["eval", str(run), "--out", str(tmp_path), "--mesh", "1", "1", *flags])
    assert evaluate("--text", str(text)) == 0
    have, table = read(tmp_path / "eval.json"), capsys.readouterr().out
    tokenizer = load_tokenizer(load(str(tiny_lm)))
    ends = lambda documents: sum(1 + len(ids) for ids in tokenizer.encode(list(documents)))
    # The last of fewer than twenty is held out; what does not fill a context is dropped from each part.
    parts = [ends(part) // POSITIONS * POSITIONS for part in (documents[:-1], documents[-1:])]
    want = sum(parts)
    assert have["eval_tokens"] == want > 4000 and have["eval_split"] == "all" and have["eval_text"] == [str(text)]
    assert f"on {want:,} tokens from all of {text}" in table
    assert f"{have['nmse']:.4f} ± {have['nmse_se']:.4f}" in table
    assert evaluate("--text", str(text), "--split", "held_out") == 0
    assert read(tmp_path / "eval.json")["eval_tokens"] == parts[1]
    assert f"on {parts[1]:,} tokens from the held-out part of" in capsys.readouterr().out


def test_a_longer_context_than_trained_on_is_measured_by_position(run, tmp_path, capsys):
    have = evaluated(run, tmp_path, "--context", "64", "--mesh", "1", "1")
    assert (have["eval_context"], have["trained_context"], have["eval_tokens"]) == (64, POSITIONS, 320)
    for name in ("nmse", "l0", "kl", "delta_ce", "raw_kl"):
        assert len(have[f"{name}_by_position"]) == 64, name
    assert np.mean(have["kl_by_position"]) == pytest.approx(have["kl"])
    assert have["delta_ce_by_position"][-1] is None
    assert np.mean(have["delta_ce_by_position"][:-1]) == pytest.approx(have["delta_ce"])
    assert (tmp_path / "eval" / "standard.png").read_bytes().startswith(b"\x89PNG")
    assert main(["eval", str(run), "--context", "65"]) == 2
    assert "--context is 65" in (error := capsys.readouterr().err) and "64 positions" in error


def test_what_training_left_out_evaluation_leaves_as_it_was(run, tiny_lm, tmp_path, capsys):
    """Position 0 and the token between documents; in the run, in its export, and in both evaluations.

    Its text is so short that it is read more than four times, and it says so.
    """
    config, folder = read(run / "config.json"), tmp_path / "run"
    flags = f"--lm {tiny_lm} --text {config['data']['text'][0]} --documents 2 --skip-first --skip-tokens eos pad 40"
    flags += f" --context {POSITIONS} --sae.n 64 --sae.k 4 --batch-size 256 --tokens 12032 --buffer-batches 2"
    assert main(["train", "--run", str(folder), "--mesh", "1", "1", "--eval-tokens", "320", *flags.split()]) == 0
    said, summary, manifest = capsys.readouterr(), read(folder / "summary.json"), read(folder / "manifest.json")
    assert summary["times_read"] == manifest["times_read"] > 4 and summary["data_tokens"] == manifest["data_tokens"]
    words = f"{summary['data_tokens']:,} tokens, read {summary['times_read']:.3g} times"
    assert words in said.err and words in said.out and "more than 4 times" in said.err
    have = evaluated(folder, tmp_path, "--mesh", "1", "1")
    export = evaluated(folder / "sae", tmp_path / "export", "--mesh", "1", "1")
    assert numbers(summary).items() <= numbers(have).items() and export["kl"] == pytest.approx(have["kl"])
    assert have["nmse_by_position"][0] is None and have["kl_by_position"][0] == 0
    assert 100 < have["eval_tokens"] == summary["eval_tokens"] < 320
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextSource, "kept", lambda self, host: host >= 0)
        everywhere = evaluated(folder, tmp_path / "everywhere", "--mesh", "1", "1")
    assert everywhere["kl_by_position"][0] > 0


def test_evaluations_of_one_reason_are_left_out_in_one_line(capsys):
    subject = SimpleNamespace(kind="transcoder", lm=None, quiet=False)
    assert _possible(("standard", "probes", "refinement", "n2g"), subject, None) == ("standard",)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(
        "jaxsae: probes, refinement are left out: --metrics NAME is not of a"
    )
    assert lines[1].startswith("jaxsae: n2g is left out: --metrics n2g needs a language model")


def test_every_evaluation_that_can_be_computed(run, tmp_path, capsys):
    few = ["--ablation.tokens", "2", "--ablation.positions", "4", "--n2g.latents", "3", "--explanations.latents", "8"]
    few += ["--dictionary.meta-steps", "2", "--probes.texts", "20", "--first-letter.words", "40"]
    have = evaluated(run, tmp_path, "--metrics", "all", "--later-layers.batch", "5", *few)
    assert {"standard", "agreement"}.isdisjoint(have) and have["nmse"] > 0
    for name in ("later_layers", "geometry", "refinement", "n2g", "explanations", "ablation"):
        assert have[name]["tokens"] == (2 if name == "ablation" else 320) and len(have[name]["protocol"]) > 80
    assert list(have["later_layers"])[1:-1] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert "agreement is left out: --metrics agreement needs --agreement.pairs" in capsys.readouterr().out
    assert (tmp_path / "eval" / "geometry.png").exists()
    # What is not a number stands beside eval.json.
    explained = json.loads((tmp_path / "eval" / "n2g.explanations.json").read_text())
    assert len(explained) == have["n2g"]["latents"] == 3 and "explanations" not in have["n2g"]
    assert all(item["trie"].keys() and item["latent"] in range(64) for item in explained)
    alone = evaluated(run, tmp_path / "alone", "--metrics", "geometry")
    assert "nmse" not in alone and alone["geometry"] == have["geometry"]


def test_results_of_the_same_tokens_come_into_one_file(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    first = evaluated(folder, folder)
    both = evaluated(folder, folder, "--metrics", "geometry")
    assert both == first | {"geometry": both["geometry"]}
    # The same number of other tokens.
    assert "nmse" not in evaluated(folder, folder, "--metrics", "geometry", "--context", "8")
    # Another folder may hold those of another autoencoder.
    evaluated(run, tmp_path)
    assert "nmse" not in evaluated(run, tmp_path, "--metrics", "geometry")


def test_a_checkpoint_by_step(run, tmp_path, capsys):
    assert evaluated(run, tmp_path, "--step", "4", "--mesh", "1", "1")["step"] == 4
    for folder, flags, message in (
        (run, ["--step", "3"], "3"),
        (run / "sae", ["--step", "3"], "--step is of a run"),
        (run, ["--metrics", "agreement"], "needs --agreement.pairs FOLDER"),
        (run, ["--mesh", "1", "7"], "do not divide over 7 devices"),
    ):
        assert main(["eval", str(folder), *flags]) == 2
        assert message in capsys.readouterr().err


def test_activations_from_files_instead(run, tmp_path):
    rows = np.random.default_rng(0).normal(size=(64 * 20, 32)).astype("f")
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "0.npy", rows)
    have = evaluated(run, tmp_path, "--activations", str(tmp_path / "rows"), "--mesh", "2", "1")
    assert have["kl"] is None and have["eval_split"] == "all" and have["eval_tokens"] == 320
    assert have["eval_text"] == str(tmp_path / "rows")


def test_other_data_in_place_of_those_of_the_run():
    text = configs.with_fields(Config(), documents=7)
    assert EvalConfig().data_of(text) == text
    assert EvalConfig().tokens_read == 262_144 and EvalConfig(text=("a",), tokens=7).tokens_read == 7
    assert EvalConfig(text=("a",)).tokens_read is EvalConfig(activations="a").tokens_read is None
    assert EvalConfig(text=("a",)).data_of(text).data.documents is None
    assert EvalConfig(text=("a",), documents=3, context=32).data_of(text).data.documents == 3
    files = configs.with_fields(Config(), activations="rows")
    with pytest.raises(BadInput, match="trained on activations from files"):
        EvalConfig(text=("a",), lm="gpt2").data_of(files)
    known = replace(files, lm=replace(files.lm, hook="blocks.1.hook_resid_post"))
    assert EvalConfig(text=("a",), lm="gpt2").data_of(known).data.activations is None
    for flags in ({"tokens": 0}, {"documents": 0}, {"activations": "rows", "text": ("a",)}):
        with pytest.raises(BadInput):
            EvalConfig(**flags)


def test_all_devices_are_on_data_unless_the_weights_need_more_memory(monkeypatch):
    shape = lambda n, d: tuple(evaluation_mesh(None, n, d).shape.values())
    assert shape(64, 32) == (8, 1)
    monkeypatch.setattr(type(jax.local_devices()[0]), "memory_stats", lambda self: {"bytes_limit": 64 * 32 * 16})
    assert shape(64, 32) == (4, 2)
    assert shape(65, 32) == (8, 1)
    assert shape(2048, 32) == (1, 8)
