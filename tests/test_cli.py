"""The command line: what a run folder holds, resuming after kills and signals, and how bad input is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxsae
from jaxsae.cli import Plan, _defaults, main
from jaxsae.mesh import make_mesh
from jaxsae.presets import PRESETS
from jaxsae.sae import files
from jaxsae.sae.struct import Spec
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.start import abstract_state
from sae import dense


@pytest.fixture(scope="session")
def flags(tiny_lm, tiny_text, tmp_path_factory):
    """Flags of a run that takes seconds."""
    cache = tmp_path_factory.mktemp("cache")
    run = f"--lm {tiny_lm} --text {tiny_text} --cache {cache} --context 32 --sae.n 64 --sae.k 4 --batch-size 256"
    return f"{run} --tokens 30000 --checkpoint-every 10 --chunk 4 --eval-tokens 2048 --lr 1e-3 --mesh 1 1".split()


@pytest.fixture(scope="session")
def finished(flags, tmp_path_factory):
    """A finished run folder."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "--run", str(folder), *flags]) == 0
    return folder


def start(folder, flags, **env):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "jaxsae.cli", "train", "--run", str(folder), "--resume", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})


def wait_for_step(process, folder, step):
    """Until metrics.jsonl says that `step` was made, or the process ends."""
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.005)


def test_run_folder(finished):
    summary = json.loads((finished / "summary.json").read_text())
    wanted = "step tokens loss nmse l0 dead_fraction ce_original ce_substituted delta_ce kl ce_recovered"
    for name in f"{wanted} tokens_per_second flops flops_dense raw_nmse no_pos0_nmse raw_no_pos0_kl".split():
        assert isinstance(summary[name], (int, float)), name
    assert summary["step"] == 118 and summary["tokens"] == 118 * 256
    assert 0 < summary["nmse"] < 1 and 3 < summary["l0"] <= 4
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["mesh"] == {"data": 1, "latent": 1} and manifest["seed"] == 0 and manifest["data_fingerprint"]
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [*range(10, 118, 10), 118]
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
    files.save(sae, tmp_path / "sae", {"hook": "blocks.0.hook_resid_post"})
    refused(capsys, ["eval", str(tmp_path / "sae")], "does not say lm,", "mse_scale")


def test_killed_runs_end_with_the_same_bytes(flags, finished, tmp_path):
    """SIGKILL at three random steps; the finished file equals that of a run nobody disturbed."""
    disturbed = tmp_path / "disturbed"
    for step in sorted(random.sample(range(10, 110, 10), 3)):
        process = start(disturbed, flags)
        wait_for_step(process, disturbed, step)
        process.kill()
        process.wait()
    assert start(disturbed, flags).wait() == 0
    same = lambda name: (finished / name).read_bytes() == (disturbed / name).read_bytes()
    assert same("sae/sae.safetensors") and same("sae/config.json")
    rows = [json.loads(line)["step"] for line in (disturbed / "metrics.jsonl").read_text().splitlines()]
    assert rows == [*range(10, 118, 10), 118], "no row twice, none missing"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_signals_save_and_say_so(flags, tmp_path, number):
    folder = tmp_path / "run"
    process = start(folder, [*flags, "--tokens", "3000000"])
    wait_for_step(process, folder, 20)
    process.send_signal(number)
    error = process.communicate()[1]
    assert process.returncode == 128 + number, error
    saved = max(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    assert f"saved at step {saved}" in error and "Traceback" not in error


def test_resumed_on_another_mesh(flags, tmp_path):
    """The batches are the same on every mesh, so only rounding (and near-ties of the top-k) can differ."""
    flags = [*flags, "--tokens", "10240", "--keep-checkpoints", "100"]
    assert main(["train", "--run", str(tmp_path / "one"), *flags]) == 0
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    for later in (tmp_path / "other" / "checkpoints").iterdir():
        if later.name != "10":
            shutil.rmtree(later)
    assert main(["train", "--run", str(tmp_path / "other"), *flags, "--resume", "--mesh", "2", "4"]) == 0
    one, other = (json.loads((tmp_path / f / "summary.json").read_text()) for f in ("one", "other"))
    assert one["step"] == other["step"] == 40
    assert other["nmse"] == pytest.approx(one["nmse"], rel=1e-3)
    assert other["kl"] == pytest.approx(one["kl"], rel=1e-2)


def test_damaged_newest_checkpoint(flags, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    for path in (folder / "checkpoints" / "118").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-1])
    assert main(["train", "--run", str(folder), *flags, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "step 118" in said
    assert "going on from the checkpoint of step 110" in said
    same = lambda name: (folder / name).read_bytes() == (finished / name).read_bytes()
    assert same("sae/sae.safetensors")


def test_full_disk(flags, tmp_path):
    """On a file system of 600 kB: one line, status 2, and the checkpoints that were made before are whole."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        process = start(small / "run", [*flags, "--keep-checkpoints", "100"])
        error = process.communicate()[1]
        assert process.returncode == 2, error
        assert error.splitlines()[-1].startswith("jaxsae: the disk is full")
        assert "Traceback" not in error
        mesh = make_mesh(1, 1)
        with Checkpoints(small / "run" / "checkpoints", 100) as checkpoints:
            assert checkpoints.steps()[0] == 10
            like = abstract_state(32, mesh, SAEConfig(64, 4), TrainingConfig(tokens=30000, batch_size=256))
            assert int(checkpoints.restore(like).step) == checkpoints.steps()[-1]
    finally:
        subprocess.run(["umount", small], check=True)


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
    further = ["train", "--start", str(tmp_path / "run")]
    assert _defaults(further).data.activations == str(shards)
    assert _defaults([*further, "--objective", "e2e", "--lm", "embedded"]).data.activations is None
    assert Plan(_defaults(["plan", *further[1:]])).config.sae.n == 64
    capsys.readouterr()
    np.save(shards / "c.npy", np.full((64, 24), np.nan, np.float32))
    refused(capsys, ["train", *flags, str(tmp_path / "nan")], "c.npy", "nan", "row 0")
    np.save(shards / "c.npy", np.ones((64, 23), np.float32))
    refused(capsys, ["train", *flags, str(tmp_path / "width")], "c.npy", "23", "24")


@pytest.mark.parametrize(
    "options",
    [
        "--ema 0 --auxk-coef 0 --sae.decoder free --skip-first --batch-size 250",
        "--hook blocks.1.mlp.hook_post --process-weights --lm-products bfloat16 --sae.select bfloat16 --sae.n 100",
        "--sae.normalise none --sae.no-subtract-b-dec --sae.n 8 --sae.k 8 --k-aux 20 --dead-after 1",
        "--sae.activation batch_topk --sae.n 64 --sae.prefixes 16 64",
        "--sae.activation jumprelu --sae.n 64 --sae.target-l0 8 --sae.bandwidth 0.1",
        "--sae.activation relu --sae.n 64 --sae.decoder normalised --sae.init orthogonal --sae.penalty lp --sae.p 0.5",
        "--objective e2e --sae.activation topk --hook blocks.0.hook_resid_mid --micro-batches 2 --mesh 2 2 "
        "--lm-products bfloat16",
        "--objective e2e_downstream --sae.activation relu --hook blocks.0.hook_resid_post --schedule cosine "
        "--warmup 512 --clip 1 --resample-every 1024 --dead-after 256",
    ],
    ids=["without extras", "neurons", "tiny", "batch_topk", "jumprelu", "relu", "e2e", "e2e_downstream"],
)
def test_options(flags, tmp_path, options):
    run = ["--run", str(tmp_path / "run"), *flags, "--tokens", "5120", "--log-every", "100", *options.split()]
    assert main(["train", *run]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert ("raw_nmse" in summary) == ("--ema" not in options)
    assert np.isfinite(list(summary.values())).all()
    about = jaxsae.describe(tmp_path / "run")
    lm = jaxsae.lm.load(about["lm"])
    lm = jaxsae.lm.process_weights(lm) if about["process_weights"] else lm
    x = lm.prefix(np.arange(32)[None], about["hook"])
    sae = jaxsae.load(tmp_path / "run")
    assert jaxsae.decode(sae, jaxsae.encode(sae, x)).shape == x.shape


def test_divergence_fails_and_keeps_what_was_saved(flags, tmp_path, capsys):
    assert main(["train", "--run", str(tmp_path / "run"), *flags, "--lr", "1e30"]) == 1
    assert "with a lower --lr" in capsys.readouterr().err


def refused(capsys, args, *said):
    """The command ends with status 2 and one line that says all of `said`."""
    assert main(args) == 2
    # A progress bar may have stood in its line.
    error = capsys.readouterr().err.strip().replace("\r", "\n").split("\n")[-1]
    assert error.startswith("jaxsae: ") and all(s in error for s in said), error


@pytest.mark.parametrize(
    "extra, said",
    [
        ("--sae.k 65", ("65", "64", "--sae.k")),
        ("--sae.n 62 --mesh 2 4", ("62", "4", "multiple")),
        ("--mesh 4 4", ("16 devices", "8")),
        ("--batch-size 100 --mesh 8 1", ("100", "multiple of 8")),
        ("--hook blocks.0.hook_resid", ("hook_resid", "blocks.L.hook_resid_post")),
        ("--hook blocks.2.hook_resid_post", ("blocks.2", "2 blocks")),
        ("--context 65", ("65", "64 positions")),
        ("--context 1", ("1", "at least 2")),
        ("--tokens 0", ("--tokens", "0")),
        ("--batch-size 1000000", ("1000000", "--batch-size")),
        ("--text nowhere/*.txt", ("nowhere/*.txt", "no file")),
        ("--lm ./nowhere", ("./nowhere", "embedded")),
        ("--ema 1", ("--ema", "1.0")),
        ("--lr -1", ("--lr", "-1.0")),
        ("--activations nowhere", ("nowhere", ".npy")),
        ("--objective e2e --hook blocks.0.hook_mlp_out", ("hook_mlp_out", "residual stream")),
        ("--objective e2e --batch-size 250", ("250", "--context 32", "multiple")),
        ("--objective e2e --mesh 8 1 --batch-size 128", ("4 contexts", "8 devices")),
        ("--objective e2e --skip-first", ("--skip-first", "local")),
        ("--start nowhere", ("nowhere", "no autoencoder")),
        ("--resample-every 1000", ("--resample-every", "1000", "--dead-after")),
        ("--sae.activation relu --sae.p 0.5", ("--sae.p", "0.5", "--sae.penalty lp")),
        ("--sae.activation jumprelu --sae.target-l0 8 --sae.penalty tanh", ("--sae.target-l0", "tanh")),
        ("--sae.activation relu --sae.target-l0 8", ("--sae.target-l0", "relu", "jumprelu has")),
        ("--preset nothing", ("nothing", "braun-gpt2-small-l6-e2e")),
    ],
)
def test_bad_input(flags, tmp_path, capsys, extra, said):
    refused(capsys, ["train", "--run", str(tmp_path / "run"), *flags, *extra.split()], *said)
    assert not (tmp_path / "run").exists(), "nothing is written for a run that cannot start"


def test_existing_run(flags, finished, tmp_path, capsys):
    before = (finished / "sae" / "sae.safetensors").read_bytes()
    refused(capsys, ["train", "--run", str(finished), *flags], "exists", "--resume")
    other = [*flags, "--sae.k", "5", "--lr", "2e-3"]
    refused(capsys, ["train", "--run", str(finished), "--resume", *other], "--sae.k was 4, not 5", "--lr was 0.001")
    refused(capsys, ["train", "--resume", *flags], "--resume needs --run")
    (tmp_path / "file").write_text("")
    refused(capsys, ["train", "--run", str(tmp_path / "file"), *flags], "is a file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    refused(capsys, ["train", "--run", str(tmp_path / "other"), "--resume", *flags], "not a run")
    refused(capsys, ["eval", str(tmp_path / "other")], "holds no autoencoder")
    assert (finished / "sae" / "sae.safetensors").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(flags, finished):
    before = {p: (finished / p).read_bytes() for p in ("sae/sae.safetensors", "summary.json", "metrics.jsonl")}
    assert main(["train", "--run", str(finished), "--resume", *flags]) == 0
    assert {p: (finished / p).read_bytes() for p in before} == before


def test_import_is_light():
    """`import jaxsae` does not import what only some of it needs."""
    code = "import jaxsae, sys; print([m for m in ('flax', 'orbax', 'transformers', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_end_to_end_run_ends_with_the_same_bytes_when_it_is_stopped(flags, finished, tmp_path):
    """From a saved autoencoder, whose settings it takes over."""
    model = [*flags[: flags.index("--sae.n")], *"--batch-size 256 --eval-tokens 1024 --mesh 1 1".split()]
    run = ["--start", str(finished), "--objective", "finetune_kl", "--hook", "blocks.0.hook_resid_mid", *model]
    run += "--lr 1e-4 --schedule linear --lr-end 0 --tokens 5120 --checkpoint-every 7".split()
    # Behind steps 6, 12 and 18, before and behind the one at which it is stopped.
    run += "--resample-every 1536 --dead-after 512".split()
    assert main(["train", "--run", str(tmp_path / "whole"), *run]) == 0
    process = start(tmp_path / "stopped", [*run, "--log-every", "1"])
    wait_for_step(process, tmp_path / "stopped", 9)
    process.kill()
    process.communicate()
    assert main(["train", "--run", str(tmp_path / "stopped"), "--resume", *run, "--log-every", "1"]) == 0
    about = jaxsae.describe(tmp_path / "whole")
    assert about["objective"] == "finetune_kl" and about["n"] == 64 and about["spec"]["k"] == 4
    files = [tmp_path / name / "sae" / "sae.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_start_must_be_of_the_same_kind(flags, finished, tmp_path, capsys):
    refused(
        capsys, ["train", "--run", str(tmp_path / "a"), *flags, "--start", str(finished), "--sae.k", "5"], "k 4, not 5"
    )
    refused(capsys, ["train", "--run", str(tmp_path / "b"), *flags, "--start", str(finished), "--sae.n", "32"], "n 64")
    wide = ["--start", str(finished), "--hook", "blocks.0.mlp.hook_post"]
    refused(capsys, ["train", "--run", str(tmp_path / "c"), *flags, *wide], "width 32", "128")
    assert not any(tmp_path.iterdir()), "nothing is written for a run that cannot start"


def test_flags_without_effect_are_named(finished, tmp_path, capsys):
    """Those that were typed; not those of a preset."""
    typed = "--sparsity 3 --downstream-coef=2 --lr_end 0 --resamples 2 --auxk-coef 0 --k-aux 4".split()
    assert main(["train", "--run", str(finished), *typed]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and "exists" in said.pop()
    why = {line.split()[1]: line for line in said}
    assert "topk" in why["--sparsity"] and "local" in why["--downstream-coef"] and "constant" in why["--lr-end"]
    assert "--resample-every" in why["--resamples"] and "AuxK" in why["--k-aux"]
    used = (
        "--sparsity 3 --sae.activation relu --schedule linear --lr-end 0 --k-aux 4 --auxk-coef 1 --resamples 2".split()
    )
    used += "--resample-every 500000 --objective e2e_downstream --downstream-coef 2".split()
    assert main(["train", "--run", str(finished), *used]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["train", "--run", str(finished), "--preset", "braun-embedded-e2e", "--sae.activation", "topk"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_preset_gives_the_flags_their_defaults(capsys):
    for name, config in PRESETS.items():
        assert _defaults(["train", "--preset", name]) == _defaults([f"--preset={name}"]) == config
    with pytest.raises(SystemExit):
        main(["train", "--preset", "braun-gpt2-small-l6-e2e", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: gpt2)" in said and "(default: blocks.6.hook_resid_pre)" in said
