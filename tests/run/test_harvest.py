"""`jaxsae harvest`: one command writes what another trains on, and the autoencoder knows where it comes from."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import jaxsae
from jaxsae.cli import main
from jaxsae.config import Config, with_fields
from jaxsae.data.arrays import read
from jaxsae.data.config import DataConfig
from jaxsae.data.tokens import TokenContexts, prepare
from jaxsae.errors import BadInput
from jaxsae.lm import load, load_tokenizer
from jaxsae.run.harvest import harvest
from jaxsae.run.harvest_config import HarvestConfig
from jaxsae.run.inputs import open_inputs, with_origin
from tests.run.commands import refused

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.mlp.hook_post")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def harvested(tiny_lm, tiny_text, cache, tmp_path_factory):
    """(folder, its index)."""
    out = tmp_path_factory.mktemp("harvest") / "out"
    data = DataConfig(text=(str(tiny_text),), context=16, cache=cache)
    asked = HarvestConfig(str(out), str(tiny_lm), HOOKS, tokens=1000, dtype="bfloat16", shard_tokens=512, data=data)
    return out, harvest(asked)


def test_so_many_tokens_of_both_parts_of_the_text(harvested, tiny_lm, tiny_text, cache):
    out, index = harvested
    # Whole contexts: 63 of 16 tokens, and a nineteenth of that.
    assert index.tokens == {"train": 1008, "held_out": 64}
    assert list(index.shards) == [f"{name}.safetensors" for name in ("train-00000", "train-00001", "held_out-00000")]
    folder = prepare([str(tiny_text)], load_tokenizer(load(str(tiny_lm))), 16, cache)
    for split, count in (("train", 63), ("held_out", 4)):
        tokens = np.concatenate([read(path)["tokens"] for path in sorted(out.glob(f"{split}-*"))])
        np.testing.assert_array_equal(tokens, TokenContexts(folder, split, 0).read(0, count))


def test_a_run_on_harvested_activations_knows_hook_model_and_context(harvested, tiny_lm, cache):
    out, _ = harvested
    config = with_origin(with_fields(Config(), activations=f"{out}#{HOOKS[1]}", cache=cache))
    assert (config.lm.hook, config.lm.lm, config.data.context) == (HOOKS[1], str(tiny_lm), 16)
    assert with_origin(config) == config
    moved = with_origin(with_fields(Config(), activations=f"{out}#{HOOKS[1]}", lm="elsewhere"))
    assert moved.lm.lm == "elsewhere"
    inputs = open_inputs(config.lm, config.data, lambda d: None)
    assert inputs.facts["hook"] == HOOKS[1] and inputs.facts["lm"] == str(tiny_lm) and inputs.width == 128
    assert inputs.facts["activations"]["rows"] == 1008 + 64
    with pytest.raises(BadInput, match=rf"--hook is {HOOKS[0]}, but .* holds activations of {HOOKS[1]}: give that"):
        open_inputs(with_origin(with_fields(config, hook=HOOKS[0])).lm, config.data, lambda d: None)
    with pytest.raises(BadInput, match=f"holds 2 arrays .*{HOOKS[0]}, {HOOKS[1]}: choose one by --activations DIR#KEY"):
        with_origin(with_fields(Config(), activations=str(out)))


@pytest.mark.slow
def test_an_autoencoder_of_harvested_activations_is_evaluated_on_text(harvested, tiny_lm, tiny_text, cache, tmp_path):
    run = tmp_path / "run"
    flags = f"--activations {harvested[0]}#{HOOKS[0]} --cache {cache} --sae.n 64 --sae.k 4 --batch-size 64 --mesh 1 1"
    assert main(["train", "--run", str(run), *flags.split(), "--tokens", "4096"]) == 0
    about = jaxsae.describe(run)
    assert (about["hook"], about["lm"], about["context"]) == (HOOKS[0], f"./{tiny_lm.name}", 16)
    text = ["--lm", str(tiny_lm), "--text", str(tiny_text), "--split", "held_out", "--tokens", "2048"]
    assert main(["eval", str(run), *text]) == 0
    assert json.loads((run / "eval.json").read_text())["kl"] > 0


def test_a_transcoder_of_harvested_activations_knows_both_hooks(harvested, tiny_lm, tiny_text, cache, tmp_path, capsys):
    out, run = harvested[0], tmp_path / "run"
    flags = f"--activations {out}#{HOOKS[0]} --hook-out {HOOKS[1]} --sae.skip --cache {cache} --sae.n 64 --sae.k 4"
    flags = [*flags.split(), "--batch-size", "64", "--mesh", "1", "1", "--run", str(run), "--eval-tokens", "64"]
    refused(capsys, ["train", *flags, "--hook", HOOKS[1]], f"--hook is {HOOKS[1]}, but", f"of {HOOKS[0]}: give that")
    assert main(["train", *flags, "--tokens", "2048"]) == 0
    about, sae = jaxsae.describe(run), jaxsae.load(run)
    assert (about["hook"], about["hook_out"], about["context"]) == (*HOOKS, 16)
    assert (sae.d, sae.d_out, sae.W_skip.shape) == (32, 128, (32, 128))
    # What it was trained on is what the model computes.
    assert 0 < json.loads((run / "summary.json").read_text())["nmse"] < 0.9
    text = ["--lm", str(tiny_lm), "--text", str(tiny_text), "--split", "held_out", "--tokens", "512"]
    assert main(["eval", str(run), *text]) == 0
    assert 0 < json.loads((run / "eval.json").read_text())["nmse"] < 0.9


@pytest.mark.slow
def test_a_harvest_that_is_killed_ends_with_the_same_bytes(tiny_lm, tiny_text, cache, tmp_path):
    flags = f"--lm {tiny_lm} --text {tiny_text} --context 16 --cache {cache} --tokens 9000 --shard-tokens 512"

    def start(out):
        command = [sys.executable, "-m", "jaxsae.cli", "harvest", "--out", str(out), *flags.split(), "--hook", *HOOKS]
        return subprocess.Popen(command)

    process, killed, whole = start(tmp_path / "killed"), tmp_path / "killed", tmp_path / "whole"
    while process.poll() is None and not (killed / "train-00001.safetensors").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start(killed).wait() == 0 and start(whole).wait() == 0
    contents = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
    assert contents(killed) == contents(whole)


def test_what_a_harvest_cannot_be(tiny_lm, tiny_text, cache, tmp_path, capsys):
    flags = ["harvest", "--lm", str(tiny_lm), "--text", str(tiny_text), "--cache", cache, "--out", str(tmp_path / "a")]
    refused(capsys, [*flags, "--hook", "blocks.7.hook_resid_post"], "'blocks.7.hook_resid_post' is outside the model")
    refused(capsys, [*flags, "--hook", HOOKS[0], "blocks.0.nothing"], "unknown hook point 'blocks.0.nothing'")
    refused(capsys, [*flags, "--hook", HOOKS[0], HOOKS[0]], f"--hook names {HOOKS[0]} twice")
    refused(capsys, [*flags, "--tokens", "0"], "--tokens is 0")
    refused(capsys, [*flags, "--activations", "x"], "--activations is of training")
    refused(capsys, [*flags, "--skip-first"], "--skip-first is of training")
    assert not (tmp_path / "a").exists()


def test_flags_of_activation_files(capsys):
    refused(capsys, ["train", "--held-out", "x"], "--held-out is of activations from files: give --activations")
    refused(capsys, ["train", "--max-norm", "10"], "--max-norm is of activations from files")
    refused(capsys, ["train", "--activations", "x", "--max-norm", "0.5"], "--max-norm is 0.5: give a multiple")
