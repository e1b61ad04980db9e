"""What is made of a run afterwards: evaluations and exports."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsae
from jaxsae.cli import main
from jaxsae.config import Config, with_fields
from jaxsae.distributed.mesh import make_mesh
from jaxsae.interop import native
from jaxsae.lm import architecture, default_hook, load
from jaxsae.run.evaluate import _facts, _lm_flops
from jaxsae.run.saved import idle_fractions
from jaxsae.sae.types import Spec
from tests.run.commands import refused
from tests.sae import dense


def test_eval(finished, capsys):
    assert main(["eval", str(finished), "--tokens", "2048"]) == 0
    measured, summary = (json.loads((finished / f).read_text()) for f in ("eval.json", "summary.json"))
    assert len(measured["nmse_by_position"]) == len(measured["raw_nmse_by_position"]) == 32
    for name in ("nmse", "kl", "raw_nmse", "dead_fraction"):
        assert measured[name] == pytest.approx(summary[name])
    assert "ce_recovered" in capsys.readouterr().out


def test_eval_of_an_export(finished, flags, tmp_path, monkeypatch):
    """The exported folder alone is enough, wherever it lies, and measures the same."""
    monkeypatch.setenv("JAXSAE_CACHE", flags[flags.index("--cache") + 1])
    folder = shutil.copytree(finished / "sae", tmp_path / "export")
    assert main(["eval", str(folder), "--tokens", "2048"]) == 0
    measured, summary = (json.loads(p.read_text()) for p in (folder / "eval.json", finished / "summary.json"))
    for name in ("step", "tokens", "loss", "nmse", "kl", "dead_fraction", "flops"):
        assert measured[name] == pytest.approx(summary[name]), name


def test_eval_of_an_export_that_does_not_say_what_it_reads(tmp_path, capsys):
    """An autoencoder saved from Python, with nothing about its model."""
    sae = dense.random_sae(jax.random.key(0), 16, 4, Spec("topk", 3, "none", "free", False), np.float32)
    native.save(sae, tmp_path / "sae", {"hook": "blocks.0.hook_resid_post"})
    refused(capsys, ["eval", str(tmp_path / "sae")], "does not say lm,", "mse_scale")


def test_a_run_that_was_stopped_loads_and_exports(finished, tmp_path, capsys):
    """Its newest checkpoint, without a language model or text; the same bytes as the finished run's export."""
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "sae")
    assert jaxsae.load(run).spec == jaxsae.load(finished).spec
    np.testing.assert_array_equal(jaxsae.load(run).W_enc, jaxsae.load(finished).W_enc)
    assert jaxsae.describe(run) == jaxsae.describe(finished)
    assert main(["export", str(run), "--out", str(tmp_path / "newest")]) == 0
    for name in ("sae.safetensors", "config.json"):
        assert (tmp_path / "newest" / name).read_bytes() == (finished / "sae" / name).read_bytes()
    assert main(["export", str(run), "--step", "50"]) == 0
    assert jaxsae.describe(run / "sae-50")["steps"] == 50
    # What was exported on the way is not what it has come to, as long as it has no summary.
    assert main(["export", str(run), "--step", "50", "--out", str(run / "sae")]) == 0
    (run / "summary.json").unlink()
    assert jaxsae.describe(run)["steps"] == 58 and jaxsae.describe(run / "sae")["steps"] == 50
    assert main(["train", "--run", str(tmp_path / "further"), "--init-from", str(run), "--tokens", "512"]) == 0
    refused(capsys, ["export", str(run), "--step", "7"], "step 7", "50, 58")
    refused(capsys, ["export", str(run), "--out", str(tmp_path / "newest")], "holds an autoencoder already")
    refused(capsys, ["export", str(tmp_path)], "config.json")


def test_flops_are_of_the_language_model_that_training_ran(tiny_lm):
    """Evaluated on files of activations, or on another model, a run has cost what it has cost."""
    config, lm = with_fields(Config(), lm=str(tiny_lm)), load(str(tiny_lm))
    assert _lm_flops(config) == architecture.flops(lm.config, default_hook(2))
    assert _lm_flops(with_fields(config, lm="./nowhere")) is None


def test_flops_count_the_dead_latents_that_auxk_revives():
    """Blocks of 512 dead latents: five products each, of 2 n d FLOPs a token."""
    config, inputs = with_fields(Config(), **{"sae.n": 4096}), SimpleNamespace(width=32, width_out=None)
    flops = lambda config, share: _facts(config, inputs, 3, {"dead_fraction": 0.1, "auxk_fraction": share})["flops"]
    tokens = 3 * config.training.batch.batch_size
    assert flops(config, 0.25) - flops(config, 0.0) == pytest.approx(tokens * 5 * 2 * 2 * 512 * 32)


def test_latents_are_dead_for_the_metrics_later_than_for_auxk():
    """A fifth of 8,000 tokens, and an eightieth; nothing is revived where AuxK is off."""
    config = with_fields(Config(), tokens=8000)
    idle = jax.device_put(np.array([0, 99, 100, 1599, 1600, 7000]), NamedSharding(make_mesh(1, 1), P()))
    shares = lambda config: idle_fractions(SimpleNamespace(idle=idle), config)
    assert shares(config) == {"dead_fraction": pytest.approx(2 / 6), "auxk_fraction": pytest.approx(4 / 6)}
    assert shares(with_fields(config, auxk_coef=0.0))["auxk_fraction"] == 0
