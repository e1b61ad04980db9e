"""What a run folder holds, and what runs can be of."""

import json
import subprocess
import sys

import numpy as np
import pytest

import jaxsae
from jaxsae.cli import default_config, main, parse
from tests.run.commands import refused


def test_run_folder(finished):
    summary = json.loads((finished / "summary.json").read_text())
    wanted = "step tokens loss nmse l0 dead_fraction ce_original ce_substituted delta_ce kl ce_recovered"
    for name in f"{wanted} tokens_per_second flops flops_dense raw_nmse no_pos0_nmse raw_no_pos0_kl".split():
        assert isinstance(summary[name], (int, float)), name
    assert summary["step"] == 58 and summary["tokens"] == 58 * 256
    assert 0 < summary["nmse"] < 1 and 3 < summary["l0"] <= 4
    manifest = json.loads((finished / "manifest.json").read_text())
    assert (
        manifest["mesh"] == {"data": 1, "latent": 1}
        and manifest["seed"] == 0
        and {*manifest["fingerprints"]} == {"text", "tokenizer", "model"}
    )
    assert manifest["data_tokens"] * manifest["times_read"] == pytest.approx(14848) and manifest["data_tokens"] > 14848
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [*range(10, 58, 10), 58]
    assert rows[-1]["nmse"] < rows[0]["nmse"]
    assert (finished / "training.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((finished / "config.json").read_text())["sae"]["n"] == 64


def test_load_encode_decode(finished):
    sae = jaxsae.load(finished)
    for path in (finished / "sae", finished / "sae" / "sae.safetensors"):
        np.testing.assert_array_equal(jaxsae.load(path).W_dec, sae.W_dec)
    about = jaxsae.describe(finished)
    assert about["hook"] == "blocks.0.hook_resid_post" and about["spec"]["activation"] == "topk"
    lm = jaxsae.lm.load(about["lm"])
    tokens = np.arange(64).reshape(2, 32)
    x = lm.prefix(tokens, about["hook"])
    code = jaxsae.encode(sae, x)
    assert code.values.shape == (2, 32, 4)
    error = ((jaxsae.decode(sae, code) - x) ** 2).sum() / ((x - x.mean((0, 1))) ** 2).sum()
    assert error < 1
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1, atol=1e-6)
    assert (jaxsae.dense(code, sae.n) > 0).sum() == (code.values > 0).sum()


@pytest.fixture
def shards(tmp_path):
    """Activations on disk: 4000 rows of width 24 with some structure."""
    rng = np.random.default_rng(0)
    rows = rng.exponential(size=(4000, 6)) @ rng.normal(size=(6, 24)) + 0.1 * rng.normal(size=(4000, 24))
    folder = tmp_path / "shards"
    folder.mkdir()
    np.save(folder / "a.npy", rows[:3000].astype(np.float32))
    np.save(folder / "b.npy", rows[3000:].astype(np.float32))
    return folder


def test_activations_from_files(shards, tmp_path, capsys):
    flags = ["--activations", str(shards), "--cache", str(tmp_path / "cache"), "--sae.n", "64", "--sae.k", "4"]
    flags += ["--batch-size", "256", "--tokens", "50000", "--lr", "3e-3", "--run"]
    assert main(["train", *flags, str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["nmse"] < 0.5
    assert summary["ce_recovered"] is None
    assert jaxsae.describe(tmp_path / "run")["hook"] is None
    further = ["--init-from", str(tmp_path / "run")]
    assert default_config(further).data.activations == str(shards)
    assert default_config([*further, "--objective", "e2e", "--lm", "embedded"]).data.activations is None
    assert parse(["plan", *further])[0].settings.sae.n == 64
    capsys.readouterr()
    np.save(shards / "c.npy", np.full((64, 24), np.nan, np.float32))
    refused(capsys, ["train", *flags, str(tmp_path / "nan")], "c.npy", "nan", "row 0")
    np.save(shards / "c.npy", np.ones((64, 23), np.float32))
    refused(capsys, ["train", *flags, str(tmp_path / "width")], "c.npy", "23", "24")


OPTIONS = {
    "neurons": "--hook blocks.1.mlp.hook_post --process-weights --lm-precision bfloat16 "
    "--lm-dtype bfloat16 --lm-shard --mesh 2 1 --sae.select-precision bfloat16 --sae.n 100",
    "e2e_downstream": "--objective e2e_downstream --sae.activation relu --hook blocks.0.hook_resid_post "
    "--schedule cosine --warmup 512 --grad-clip 1 --resample-every 1024 --dead-after 256",
}
# The default tests train these too, but not from the command line.
SLOW = {
    "without extras": "--ema 0 --auxk-coef 0 --sae.decoder free --skip-first --batch-size 250",
    "e2e": "--objective e2e --sae.activation topk --hook blocks.0.hook_resid_mid --micro-batches 2 --mesh 2 2 "
    "--lm-precision bfloat16 --lm-dtype bfloat16 --lm-shard",
    "tiny": "--sae.normalise none --sae.no-subtract-b-dec --sae.n 8 --sae.k 8 --k-aux 20 --dead-after 1",
    "batch_topk": "--sae.activation batch_topk --sae.n 64 --sae.prefixes 16 64",
    "jumprelu": "--sae.activation jumprelu --sae.n 64 --sae.target-l0 8 --sae.jumprelu.bandwidth 0.1",
    "relu": "--sae.activation relu --sae.n 64 --sae.decoder normalised --sae.init orthogonal --sae.penalty lp "
    "--sae.exponent 0.5",
}
CASES = [pytest.param(flags, id=name) for name, flags in OPTIONS.items()]
CASES += [pytest.param(flags, id=name, marks=pytest.mark.slow) for name, flags in SLOW.items()]


@pytest.mark.parametrize("options", CASES)
def test_options(flags, tmp_path, options):
    run = ["--run", str(tmp_path / "run"), *flags, "--tokens", "5120", "--log-every", "100", *options.split()]
    assert main(["train", *run]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert ("raw_nmse" in summary) == ("--ema" not in options)
    assert np.isfinite([value for value in summary.values() if isinstance(value, int | float)]).all()
    about = jaxsae.describe(tmp_path / "run")
    assert about["lm_dtype"] == ("bfloat16" if "--lm-dtype" in options else "float32")
    lm = jaxsae.lm.load(about["lm"])
    lm = jaxsae.lm.process_weights(lm) if about["process_weights"] else lm
    x = lm.prefix(np.arange(32)[None], about["hook"])
    sae = jaxsae.load(tmp_path / "run")
    assert jaxsae.decode(sae, jaxsae.encode(sae, x)).shape == x.shape


def test_divergence_fails_and_keeps_what_was_saved(flags, tmp_path, capsys):
    assert main(["train", "--run", str(tmp_path / "run"), *flags, "--lr", "1e30"]) == 1
    assert "with a lower --lr" in capsys.readouterr().err


def test_import_is_light():
    """`import jaxsae` does not import what only some of it needs."""
    code = "import jaxsae, sys; print([m for m in ('flax', 'orbax', 'transformers', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
