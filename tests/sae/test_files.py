"""Autoencoders on disk: exact, deterministic, and never guessed at."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxsae.errors import BadInput
from jaxsae.sae import files
from jaxsae.sae.struct import Spec
from sae import dense

SAE = dense.random_sae(jax.random.key(0), 16, 4, Spec("topk", 3, "ln_std", "free", False), jnp.float32)


@pytest.fixture
def folder(tmp_path):
    files.save(SAE, tmp_path / "sae", {"hook": "blocks.1.hook_resid_post", "lm": "embedded"})
    return tmp_path / "sae"


def test_round_trip(folder, tmp_path):
    for path in (folder, tmp_path, folder / "sae.safetensors", str(folder)):
        sae = files.load(path)
        assert sae.spec == SAE.spec
        jax.tree.map(np.testing.assert_array_equal, sae, SAE)
    about = files.describe(tmp_path)
    assert about["hook"] == "blocks.1.hook_resid_post" and about["spec"]["k"] == 3


def test_the_same_bytes_every_time(folder):
    before = (folder / "sae.safetensors").read_bytes()
    files.save(SAE, folder, {"hook": "blocks.1.hook_resid_post", "lm": "embedded"})
    assert (folder / "sae.safetensors").read_bytes() == before


def test_the_file_alone_is_enough(folder, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "sae.safetensors").read_bytes())
    assert files.load(alone).spec == SAE.spec


def test_a_file_that_does_not_say_is_refused(folder):
    tensors = load_file(folder / "sae.safetensors")
    save_file(tensors, folder / "sae.safetensors")
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"spec.activation, spec.k, spec.normalise, spec.decoder, spec.subtract_b_dec"):
        files.load(folder)
    said = {"format": files.FORMAT, "spec": {"activation": "topk", "k": 3, "normalise": "none", "decoder": "free"}}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match=r"must say spec.subtract_b_dec$"):
        files.load(folder)
    said["spec"]["subtract_b_dec"] = True
    (folder / "config.json").write_text(json.dumps(said))
    assert files.load(folder).spec == Spec("topk", 3, "none", "free", True)
    said["spec"]["activation"] = "softmax"
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match=r"'softmax': allowed are topk"):
        files.load(folder)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"not json"], ids=repr)
def test_not_a_safetensors_file(tmp_path, content):
    (tmp_path / "sae.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match=r"sae.safetensors"):
        files.load(tmp_path)


def test_truncated_or_incomplete(folder, tmp_path):
    whole = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(whole[:-4])
    with pytest.raises(BadInput, match="cannot be read"):
        files.load(folder)
    text = (folder / "config.json").read_text()
    save_file({"W_enc": np.zeros((4, 2), np.float32)}, folder / "sae.safetensors", {"jaxsae": text})
    with pytest.raises(BadInput, match="lacks b_enc, W_dec, b_dec"):
        files.load(folder)
    with pytest.raises(BadInput, match="holds no autoencoder"):
        files.load(tmp_path / "nothing")
