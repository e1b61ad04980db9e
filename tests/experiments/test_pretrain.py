"""The pretraining script at a tiny size: a run that was cut off and resumed ends with the same bytes, and loads."""

import csv
import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.data.text import stdlib_files

SCRIPT = Path(__file__).parents[2] / "experiments" / "pretrain_embedded_lm.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("pretrain_embedded_lm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, spec.name, module)
    spec.loader.exec_module(module)
    few = [p for p in stdlib_files() if p.parent.name in ("json", "collections", "logging")]
    monkeypatch.setattr(module, "stdlib_files", lambda: few)
    return module


@pytest.fixture
def novels(tmp_path):
    """Twenty 'novels': every tenth is held out."""
    path = tmp_path / "novels.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for i in range(20):
            text = f"Chapter {i}. It was a dark and stormy night, said number {i}.\n".encode() * 400
            info = tarfile.TarInfo(f"corpus/{i:02}.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return path


@pytest.mark.slow
def test_resumes_to_the_same_bytes(script, novels, tmp_path, monkeypatch):
    def config(name, **changes):
        sizes = {"vocab_size": 300, "context": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "batch": 8, "warmup": 2}
        sizes |= {"tokens": 12 * 8 * 16, "eval_every": 4 * 8 * 16, "checkpoint_minutes": 0}
        return script.Config(str(novels), str(tmp_path / name), **sizes, **changes)

    script.main(config("calm"))
    step, made = script.train_step, []

    def dies(*args):
        made.append(1)
        if len(made) == 8:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(script, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        script.main(config("cut"))
    monkeypatch.setattr(script, "train_step", step)
    script.main(config("cut", resume=True))
    read = lambda name: (tmp_path / name / "model" / "model.safetensors").read_bytes()
    assert read("calm") == read("cut")

    folder = tmp_path / "cut" / "model"
    with (folder / "training_curve.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert [int(row["tokens"]) for row in curve] == [512, 1024, 1536]
    assert float(curve[-1]["novels_nats_per_token"]) < float(curve[0]["novels_nats_per_token"])
    lm = lms.load(str(folder))
    tokenizer = lms.load_tokenizer(lm)
    assert tokenizer.end_of_text == 299
    ids = tokenizer.encode(["It was a dark night."])[0]
    assert tokenizer.decode(ids) == "It was a dark night."
    assert np.isfinite(lm.run(np.asarray([ids]))).all()
    assert "bits per byte" in (folder / "README.md").read_text()
