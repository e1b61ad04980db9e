"""The commands of docs/data.md, as they stand, on small files."""

import gzip
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsae.cli import main
from jaxsae.data.text import stdlib_files
from jaxsae.lm.weights import EMBEDDED, find_folder

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
# What a command needs beside jaxsae itself.
PACKAGES = {"hf:": "datasets", "#messages": "jinja2"}


def commands() -> list[list[str]]:
    """The arguments of every command of the page that needs no network."""
    text = re.sub(r"\\\n *", "", PAGE.read_text())
    lines = [line.strip() for line in text.splitlines() if line.startswith("    jaxsae ")]
    return [shlex.split(line)[1:] for line in lines if not line.endswith("# network")]


def lacking(command: list[str]) -> str | None:
    """A package that a command needs and that is not here."""
    needed = [package for mark, package in PACKAGES.items() if any(mark in word for word in command)]
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page speaks of: texts, token ids, a model with a chat template, and activations."""
    where = tmp_path_factory.mktemp("recipes")
    documents = [path.read_text("utf-8", errors="replace")[:6000] for path in stdlib_files()[:60]]
    write = lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (where / "corpus").mkdir()
    write(where / "corpus" / "part.jsonl", [{"text": text, "body": text} for text in documents[:40]])
    (where / "corpus" / "notes.txt").write_text("\n<|endoftext|>\n".join(documents[40:]))
    (where / "more.txt.gz").write_bytes(gzip.compress("\n<|endoftext|>\n".join(documents[40:]).encode()))
    chat = lambda text: [{"role": "user", "content": text[:50]}, {"role": "assistant", "content": text[50:]}]
    write(where / "chats.jsonl", [{"messages": chat(text)} for text in documents])
    draw = np.random.default_rng(0)
    np.save(where / "ids.npy", draw.integers(0, 4096, (700, 64)))
    write(where / "games.jsonl", [{"moves": draw.integers(0, 4096, 900).tolist()} for _ in range(40)])
    shutil.copytree(find_folder(EMBEDDED), where / "chat-model")
    about = where / "chat-model" / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"chat_template": template}))
    for name in ("acts", "named", "test"):
        (where / name).mkdir()
    rows = lambda count: draw.normal(size=(count, 24)).astype(np.float32)
    np.save(where / "acts" / "rows.npy", rows(3000))
    for name in ("named", "test"):
        save_file({"layer.8": rows(2500), "layer.9": rows(2500)}, where / name / "rows.safetensors")
    if importlib.util.find_spec("datasets"):
        import datasets

        datasets.Dataset.from_dict({"text": documents}).save_to_disk(where / "saved")
    return where


@pytest.mark.slow
def test_every_command_runs_as_it_stands(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "cache"))
    ran = 0
    for command in commands():
        if not lacking(command):
            assert main(command) == 0, (command, capsys.readouterr().err)
            ran += 1
    assert ran >= 11
