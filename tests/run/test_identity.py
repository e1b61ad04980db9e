"""Text, tokenizer and language model are told by what they hold: changed ones are noticed, moved ones are found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxsae
from jaxsae import compatibility
from jaxsae.cli import main
from jaxsae.config import Config, from_json, to_json, with_fields
from jaxsae.errors import BadInput
from jaxsae.run import checks, folder, identity, places, saved
from tests.run.commands import refused


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def other_text(tiny_text, tmp_path):
    """The same documents behind another one, which moves each across the borders of the held-out ones."""
    path = tmp_path / "other.txt"
    path.write_text("One more document.\n<|endoftext|>\n" + tiny_text.read_text())
    return path


@pytest.fixture
def other_lm(tiny_lm, tmp_path):
    """The same model with one weight changed by 30 %."""
    path = shutil.copytree(tiny_lm, tmp_path / "other_lm")
    tensors = load_file(path / "model.safetensors")
    name = max(tensors, key=lambda name: tensors[name].size)
    tensors[name] = np.where(np.arange(tensors[name].size).reshape(tensors[name].shape) == 7, 1.3, 1) * tensors[name]
    save_file({name: t.astype(np.float32) for name, t in tensors.items()}, path / "model.safetensors")
    return path


def reads(run, **names):
    """The run says now that it was trained on `names`: as if what lies there had been changed."""
    config = with_fields(from_json(run / "config.json"), **names)
    (run / "config.json").write_text(to_json(config))


def moved(folder, text, lm):
    """Copies of a text and a language model in another place."""
    (folder / "moved").mkdir()
    return Path(shutil.copy(text, folder / "moved")), shutil.copytree(lm, folder / "moved" / "lm")


def test_a_changed_text_is_not_evaluated_on_unasked(run, other_text, capsys):
    reads(run, text=(str(other_text),))
    refused(capsys, ["eval", str(run)], "not trained on the text", "other.txt", "give --text")


def test_a_changed_weight_is_not_evaluated_unasked(run, other_lm, capsys):
    reads(run, lm=str(other_lm))
    refused(capsys, ["eval", str(run)], "not trained on the weights of", "other_lm", "give --lm")
    assert "tokenizer" not in capsys.readouterr().err


def test_a_changed_tokenizer_is_not_evaluated_with_unasked(run, tiny_lm, tmp_path, capsys):
    path = shutil.copytree(tiny_lm, tmp_path / "other_tokenizer")
    document = json.loads((path / "tokenizer.json").read_text())
    document["model"]["merges"].pop()
    (path / "tokenizer.json").write_text(json.dumps(document))
    reads(run, lm=str(path))
    refused(capsys, ["eval", str(run)], "not trained on the tokenizer of", "give --lm")


def test_an_evaluation_on_another_text_and_model_says_so(run, other_text, other_lm):
    other = ["--text", str(other_text), "--lm", str(other_lm)]
    assert main(["eval", str(run), "--tokens", "512", *other]) == 0
    measured = json.loads((run / "eval.json").read_text())
    assert measured["other_text"] is True and measured["other_lm"] is True and measured["eval_split"] == "all"
    was = json.loads((run / "manifest.json").read_text())["fingerprints"]
    same = {kind for kind in was if measured[f"{kind}_fingerprint"] == was[kind]}
    assert same == {"tokenizer"}


def test_a_moved_text_and_model_are_those_of_the_run(run, tiny_text, tiny_lm, tmp_path, capsys):
    """Its held-out documents are read, as before they were moved."""
    text, lm = moved(tmp_path, tiny_text, tiny_lm)
    reads(run, text=("/gone/text.txt",), lm="/gone/lm")
    refused(capsys, ["eval", str(run)], "/gone/text.txt", "give --lm and --text with its place now")
    assert main(["eval", str(run), "--tokens", "2048", "--text", str(text), "--lm", str(lm)]) == 0
    measured, summary = (json.loads((run / f).read_text()) for f in ("eval.json", "summary.json"))
    assert measured["eval_split"] == "held_out" and "other_text" not in measured and "other_lm" not in measured
    for name in ("nmse", "kl", "ce_original", "eval_tokens"):
        assert measured[name] == pytest.approx(summary[name]), name


def test_a_moved_text_and_model_do_not_strand_a_run_that_is_resumed(run, flags, tiny_text, tiny_lm, tmp_path, capsys):
    """config.json says the new places then. Changed ones are refused."""
    text, lm = moved(tmp_path, tiny_text, tiny_lm)
    before = np.asarray(jaxsae.load(run).W_dec)
    resume = ["train", "--run", str(run), "--resume", *flags, "--text", str(text), "--lm", str(lm)]
    assert main(resume) == 0
    config = from_json(run / "config.json")
    assert config.data.text == (str(text),) and config.lm.lm == str(lm)
    np.testing.assert_array_equal(jaxsae.load(run).W_dec, before)
    text.write_text(text.read_text() + "more")
    refused(capsys, resume, "--resume with other data", "the text", "moved/text.txt")
    # A run of an older version does not say what it read: names are compared.
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["fingerprints"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    refused(capsys, [*resume, "--text", "elsewhere"], "--text was ")


def test_a_start_on_changed_data_is_refused_unless_it_is_asked_for(run, other_text):
    reads(run, text=(str(other_text),))
    config = with_fields(from_json(run / "config.json"), init_from=str(run))
    now = saved.fingerprints_of(run) | {"text": identity.of_text([str(other_text)])}
    check = lambda config, asked=(): checks.check_identity(run.parent / "new", config, asked, now)
    with pytest.raises(BadInput, match=r"--init-from .*/run was not trained on the text .*other.txt .*: give --text"):
        check(config)
    check(config, {"text"})
    check(with_fields(config, text=("elsewhere",)))
    with pytest.raises(BadInput, match="give --text"):
        check(config, {"lm"})


def test_a_flag_that_is_typed_asks_for_what_it_names(run, monkeypatch):
    asked = {}
    monkeypatch.setattr("jaxsae.run.train.started", lambda config: config)
    monkeypatch.setattr("jaxsae.run.train.train", lambda config, flags: asked.update(flags=flags) or {})
    assert main(["train", "--init-from", str(run), "--run", "x", "--text", "stdlib", "--sae.k", "4"]) == 0
    assert asked["flags"] & {"text", "lm", "activations"} == {"text"}


def test_processes_with_other_data_are_told_which(monkeypatch):
    mine, theirs = {"text": "a", "model": "b"}, {"text": "a", "model": "c"}
    monkeypatch.setattr(folder.processes, "exchange", lambda text: [json.dumps(mine), json.dumps(theirs)])
    with pytest.raises(BadInput, match=r"process 1 has other data than process 0: the weights of embedded .*c, not b"):
        folder.check_identity(Path("nowhere"), Config(), mine)


def test_an_export_names_no_place(finished, tiny_lm):
    for name in ("config.json", "sae.safetensors"):
        text = (finished / "sae" / name).read_bytes()
        assert str(tiny_lm.parent).encode() not in text and b"/tmp/" not in text and tiny_lm.name.encode() in text
    names = {
        "lm": ("/models/gpt2", "./gpt2"),
        "text": (
            (
                "/data/*.txt",
                "../b.jsonl#code",
                "stdlib",
                "tfds:lm1b",
                "hf:a/b:train",
                "hf:/data/set:test",
                "tokens:/c.npy",
            ),
            ("./*.txt", "./b.jsonl#code", "stdlib", "tfds:lm1b", "hf:a/b:train", "hf:./set:test", "tokens:./c.npy"),
        ),
        "init_from": ("/runs/a", "./a"),
    }
    bare = places.without_places(with_fields(Config(), **{name: typed for name, (typed, _) in names.items()}))
    assert (bare.lm.lm, bare.data.text, bare.training.init_from) == tuple(said for _, said in names.values())
    for name in ("embedded", "gpt2", "Qwen/Qwen2.5-0.5B"):
        assert places.without_places(with_fields(Config(), lm=name)).lm.lm == name
    assert places.without_places(with_fields(Config(), activations="/acts/l8/")).data.activations == "./l8"


def test_an_export_finds_what_it_was_trained_on(finished, tiny_lm, tiny_text, tmp_path, monkeypatch, capsys):
    """Through its run, or by what this machine has read before; otherwise it asks for it in one sentence."""
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "empty"))
    export = shutil.copytree(finished / "sae", tmp_path / "export")
    where = lambda path: (saved.config_of(path).lm.lm, saved.config_of(path).data.text)
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    for path in (finished / "sae", run, run / "sae", run / "sae" / "sae.safetensors"):
        assert where(path) == (str(tiny_lm), (str(tiny_text),))
    assert where(export) == (f"./{tiny_lm.name}", ("./text.txt",))
    refused(capsys, ["eval", str(export)], str(export), tiny_lm.name, "text.txt", "give --lm and --text")
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "cache"))
    read = with_fields(from_json(finished / "config.json"), cache=None)
    places.remember(read, saved.fingerprints_of(finished))
    assert where(export) == (str(tiny_lm), (str(tiny_text),)) == where(export / "sae.safetensors")
    assert jaxsae.describe(export)["lm"] == str(tiny_lm) and jaxsae.describe(export)["text"] == [str(tiny_text)]
    # Not if it is there no more.
    places.remember(with_fields(read, text=("/gone/text.txt",)), saved.fingerprints_of(finished))
    assert where(export) == (str(tiny_lm), ("./text.txt",))


def test_what_an_older_version_says_of_its_model_is_compared():
    older = {"data_fingerprint": "f54886e3ab857153d16e-be42299e"}
    assert compatibility.fingerprints_of_1(older, False) == {"model": "be42299e"}
    for facts, processed in ((older, True), ({"data_fingerprint": "f54886e3ab857153d16e"}, False), ({}, False)):
        assert compatibility.fingerprints_of_1(facts, processed) == {}
    with pytest.raises(BadInput, match="the weights of gpt2"):
        now = {"text": "t", "model": "0"}
        identity.check_same(identity.saved(older, False), now, with_fields(Config(), lm="gpt2"), {"text"}, "runs/a")
