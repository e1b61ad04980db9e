"""Autoencoders of other libraries are converted, and evaluated like our own."""

import json

import jax
import numpy as np
import pytest

import jaxsae
from jaxsae import interop
from jaxsae.cli import main
from jaxsae.sae.types import SAE, Spec
from tests.run.commands import refused

D, N = 32, 64
ABOUT = {"hook": "blocks.1.hook_resid_post", "lm": None, "context": 32, "bos": False}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A TopK autoencoder in SAELens's format."""
    random = np.random.default_rng(0)
    W = random.normal(size=(N, D)).astype(np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    sae = SAE(W, np.zeros(N, np.float32), W, np.zeros(D, np.float32), Spec("topk", 4, "ln_std", "free", True))
    folder = tmp_path_factory.mktemp("foreign") / "sae"
    assert interop.write(sae, ABOUT, folder, "sae_lens") == []
    return folder


def test_other_formats_are_evaluated(foreign, tiny_lm, tiny_text, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "cache"))
    on = ["--text", str(tiny_text), "--tokens", "1024"]
    refused(capsys, ["eval", str(foreign), *on], "does not say what to evaluate it on: give --lm")
    on += ["--lm", str(tiny_lm)]
    refused(capsys, ["eval", str(foreign), *on, "--hook", "blocks.0.hook_resid_post"], "says that hook is blocks.1")
    wide = ["eval", str(foreign), *on[:4], "--lm", "embedded"]
    refused(capsys, wide, "is for activations of width 32, and here they have 192")
    assert main(["eval", str(foreign), *on, "--out", str(tmp_path / "a")]) == 0
    measured = json.loads((tmp_path / "a/eval.json").read_text())
    assert measured["kl"] > 0 and 0 < measured["nmse"] and measured["l0"] <= 4 and measured["loss"] is None
    assert measured["eval_context"] == 32 and measured["eval_split"] == "all"

    # The same in jaxsae's own format, of which nothing more is known.
    converted = tmp_path / "converted"
    assert main(["convert", str(foreign), str(converted), "--to", "jaxsae", "--lm", str(tiny_lm)]) == 0
    about = jaxsae.describe(converted)
    assert (about["hook"], about["lm"], about["format"]) == (ABOUT["hook"], str(tiny_lm), "sae_lens")
    jax.tree.map(np.testing.assert_array_equal, jaxsae.load(converted), jaxsae.load(foreign))
    assert main(["eval", str(converted), *on[:4], "--out", str(tmp_path / "b")]) == 0
    again = json.loads((tmp_path / "b/eval.json").read_text())
    assert [again[name] for name in ("nmse", "kl", "l0")] == [measured[name] for name in ("nmse", "kl", "l0")]


def test_runs_are_converted(finished, tmp_path, capsys):
    """No other library has the normalisation that is the default here: it is refused, and nothing is written."""
    out = tmp_path / "out"
    refused(
        capsys, ["convert", str(finished), str(out), "--to", "sae_lens"], "topk and unit_norm normalisation", "ln_std"
    )
    assert not list(tmp_path.iterdir())
    assert main(["convert", str(finished), str(out), "--to", "jaxsae"]) == 0
    jax.tree.map(np.testing.assert_array_equal, jaxsae.load(out), jaxsae.load(finished))
    for name in ("sae.safetensors", "config.json"):
        assert (out / name).read_bytes() == (finished / "sae" / name).read_bytes()
    refused(capsys, ["convert", str(finished), str(out), "--to", "jaxsae"], "is there already: give another folder")
    refused(
        capsys,
        ["eval", str(finished), "--hook", "blocks.0.hook_resid_post"],
        "--hook and --hook-out are of autoencoders",
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["topk", "jumprelu"])
def test_training_starts_from_other_formats(tiny_lm, tiny_text, tmp_path, family, flags):
    """Their flags are the defaults; thresholds become the logarithms that are trained."""
    random = np.random.default_rng(0)
    W = random.normal(size=(N, D)).astype(np.float32)
    extra = {"threshold": np.linspace(0, 2, N, dtype=np.float32)} if family == "jumprelu" else {}
    spec = Spec(family, 4, "ln_std", "free", True)
    sae = SAE(W, np.zeros(N, np.float32), W, np.zeros(D, np.float32), spec, extra)
    interop.write(sae, ABOUT, tmp_path / "sae", "sae_lens")
    cache = flags[flags.index("--cache") + 1]
    on = ["--lm", str(tiny_lm), "--text", str(tiny_text), "--cache", cache, "--eval-tokens", "512"]
    run = ["--run", str(tmp_path / "run"), "--tokens", "512", "--batch-size", "256", "--lr", "1e-9", "--mesh", "1", "1"]
    assert main(["train", "--init-from", str(tmp_path / "sae"), *run, *on]) == 0
    trained = jaxsae.load(tmp_path / "run")
    assert trained.spec == spec.replace(k=trained.spec.k)
    np.testing.assert_allclose(trained.W_enc, W, atol=1e-6)
    if family == "jumprelu":
        np.testing.assert_allclose(np.exp(trained.extra["log_threshold"]), extra["threshold"], rtol=1e-5, atol=1e-6)
