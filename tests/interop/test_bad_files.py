"""Damaged, misshapen and hostile files of other libraries: one line each, nothing executed, nothing written."""

import json
import os
import pickle
import random
import shutil
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxsae import interop
from jaxsae.cli import main
from jaxsae.errors import BadInput
from jaxsae.interop.interface import Given
from jaxsae.io import torch_files, zips
from tests.interop import foreign_files
from tests.interop.families import ABOUT, PAIR, random_sae

FAMILIES = {"sae_lens": "gated", "sparsify": "topk", "dictionary_learning": "batch_topk", "gemma_scope": "jumprelu"}
WEIGHTS = {
    "sae_lens": "sae_weights.safetensors",
    "sparsify": "sae.safetensors",
    "dictionary_learning": "ae.pt",
    "gemma_scope": "params.npz",
    "circuit_tracer": "layer_0.safetensors",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each written format, and of those that are only read."""
    root = tmp_path_factory.mktemp("formats")
    for name, family in FAMILIES.items():
        interop.write(random_sae(family), ABOUT, root / name, name)
    interop.write(random_sae("relu", transcoder=True), PAIR, root / "circuit_tracer", "circuit_tracer")
    foreign_files.qwen_scope(root / "qwen_scope")
    foreign_files.llama_scope(root / "llama_scope")
    foreign_files.matryoshka_training(root / "matryoshka")
    return root


def refused(capsys, folder, message: str, *flags: str):
    """`jaxsae convert` of the folder says one line, with status 2, and writes nothing."""
    out = folder.parent / "out"
    assert main(["convert", str(folder), str(out), "--to", "jaxsae", *flags]) == 2
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.startswith("jaxsae: ") and stderr.count("\n") == 1, stderr
    assert not out.exists() and not list(folder.parent.glob(".out*"))


@pytest.mark.parametrize("name", WEIGHTS)
def test_truncated_and_renamed(folders, tmp_path, capsys, name):
    folder = shutil.copytree(folders / name, tmp_path / "a")
    file = folder / WEIGHTS[name]
    whole = file.read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(capsys, folder, f"{WEIGHTS[name]} ")
    file.write_bytes(whole)
    file.rename(folder / "renamed.bin")
    refused(capsys, folder, "holds no autoencoder: give")


@pytest.mark.parametrize("name", ["sae_lens", "sparsify", "circuit_tracer"])
def test_misshapen_or_not_numbers(folders, tmp_path, capsys, name):
    folder = shutil.copytree(folders / name, tmp_path / "a")
    file = folder / WEIGHTS[name]
    arrays = load_file(file)
    encoder = next(key for key in arrays if key in ("W_enc", "encoder.weight"))
    bad = {
        "NaN": (arrays | {encoder: np.where(arrays[encoder] > 0.5, np.nan, arrays[encoder])}, "NaN or infinite"),
        "short": (arrays | {"W_dec": arrays["W_dec"][:, :-1]}, "W_dec of shape [96, 23], not [96, 24]"),
        "no axis": (
            arrays | {"b_dec": arrays["b_dec"].sum(keepdims=True)[None]},
            "b_dec of shape [1, 1], which should have 1",
        ),
        "other width": (arrays | {"W_dec": arrays["W_dec"][:-1]}, "W_dec of shape [95, 24], not [96, 24]"),
        "integers": (arrays | {"W_dec": arrays["W_dec"].astype(np.int32)}, "W_dec of type int32"),
        "missing": ({key: a for key, a in arrays.items() if key != "b_dec"}, "lacks b_dec"),
        "more": (arrays | {"gain": arrays["b_dec"]}, "holds gain, which jaxsae does not know"),
    }
    # Of a transcoder the output's width is its own.
    if name == "circuit_tracer":
        bad["short"] = bad["short"][0], "b_dec of shape [24], not [23]"
    for changed, message in bad.values():
        save_file(changed, file)
        refused(capsys, folder, message)
    halves = {key: a.astype(np.float16) for key, a in arrays.items()}
    save_file(halves, file)
    sae = interop.load(folder)
    assert {str(a.dtype) for a in jax.tree.leaves(sae)} == {"float32"}
    np.testing.assert_array_equal(sae.W_dec, halves["W_dec"].astype(np.float32))


class Call:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_a_pickle_with_code(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in (("dictionary_learning", "ae.pt"), ("qwen_scope", "layer3.sae.pt")):
        folder = shutil.copytree(folders / name, tmp_path / name)
        with zipfile.ZipFile(folder / file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"W_enc": Call()}, 2))
        refused(capsys, folder, "holds posix.mkdir, which is not read, because reading it would run code")
    assert not (tmp_path / "sprung").exists()


def test_what_would_fill_the_memory(folders, tmp_path, capsys, monkeypatch):
    """Archives that grow, a pickle that remembers number 4,000,000,000, and YAML that doubles itself."""
    folder = shutil.copytree(folders / "dictionary_learning", tmp_path / "a")
    with zipfile.ZipFile(folder / "ae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        with archive.open("archive/data/0", "w") as member:
            member.write(bytes(2 << 20))
    monkeypatch.setattr(zips, "_GROWN", 1 << 20)
    refused(capsys, folder, "would become 2,097,")
    torch_files.save(folder / "ae.pt", {"b_dec": np.zeros(2)})
    with zipfile.ZipFile(folder / "ae.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}r\xff\xff\xff\xee.")
    refused(capsys, folder, "its pickle remembers something as number 4,009,754,623".replace(",", ""))
    folder = shutil.copytree(folders / "circuit_tracer", tmp_path / "b")
    doubled = [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    (folder / "config.yaml").write_text("\n".join(["a0: &a0 [1, 1]", *doubled]))
    refused(capsys, folder, "config.yaml cannot be read: it holds more values than a configuration does")


def test_documents_that_say_something_else(folders, tmp_path, capsys):
    for name, file, text, message in (
        ("sae_lens", "cfg.json", "[1]", "cfg.json holds no object, but a list"),
        ("sae_lens", "cfg.json", "{", "cfg.json cannot be read"),
        ("sparsify", "cfg.json", '{"k": 5}', "cfg.json does not say d_in"),
        ("sparsify", "cfg.json", '{"k": [5], "d_in": 24}', "says that k is a list: a whole number is needed"),
        ("sparsify", "cfg.json", '{"k": 97, "d_in": 24, "num_latents": 96}', "k = 97: not [n, d] and 1 to n"),
        ("dictionary_learning", "config.json", '{"trainer": 3}', "says no trainer"),
        ("circuit_tracer", "config.yaml", "activation: [relu]", "says activation ['relu']: jaxsae reads relu"),
    ):
        folder = shutil.copytree(folders / name, tmp_path / "a", dirs_exist_ok=True)
        (folder / file).write_text(text)
        refused(capsys, folder, message)
        shutil.rmtree(folder)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are changed where headers are, cut off, or exchanged."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        # Headers are at the beginning of safetensors and of pickles, and at the end of archives.
        at = rng.choice(
            (rng.randrange(len(data)), rng.randrange(min(400, len(data))), -1 - rng.randrange(min(400, len(data))))
        )
        data[at] = rng.choice((0, 255, rng.randrange(256), data[at] ^ 1 << rng.randrange(8)))
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def test_fuzzed_headers_and_archives(folders, tmp_path):
    """Whatever is wrong with a file, it is read or refused: no other error, and no great memory."""
    rng = random.Random(0)
    given = Given(k=5)
    read = refused = 0
    for name in sorted(path.name for path in folders.iterdir() if path.is_dir()):
        folder = shutil.copytree(folders / name, tmp_path / name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        whole = {file: file.read_bytes() for file in files}
        for _ in range(60):
            file = rng.choice(files)
            file.write_bytes(damaged(whole[file], rng))
            try:
                sae, about = interop.read(folder, given=given)
                jax.tree.map(lambda rows: np.asarray(rows[:]), sae)
                json.dumps(about)
                read += 1
            except BadInput:
                refused += 1
            file.write_bytes(whole[file])
    assert read > 20 and refused > 100
