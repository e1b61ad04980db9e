"""Transcoders and crosscoders from the command line: trained, exported, evaluated, resumed, refused."""

import json
import shutil

import numpy as np
import pytest

import jaxsae
from jaxsae.cli import main, parse
from jaxsae.config import from_json, to_json, without_effect
from jaxsae.errors import BadInput
from jaxsae.sweep import product
from tests.run.commands import refused
from tests.run.test_resume import start, wait_for_step

IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
TRANSCODER = ["--hook", IN, "--hook-out", OUT, "--sae.skip"]
CROSSCODER = ["--hook", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "--sae.crosscoder"]
FEW = ["--tokens", "2560", "--eval-tokens", "512"]


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_a_transcoder_is_trained_and_evaluated_as_what_it_replaces(flags, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "--run", str(folder), *flags, *FEW, *TRANSCODER]) == 0
    summary, about = read(folder, "summary.json"), jaxsae.describe(folder)
    assert (about["hook"], about["hook_out"]) == (IN, OUT)
    sae, lm = jaxsae.load(folder), jaxsae.lm.load(about["lm"])
    assert sae.W_skip.any() and sae.b_in is not None and sae.scale_out.shape == (1,)
    tokens = np.arange(96, dtype=np.int32).reshape(3, 32)
    seen, _ = jaxsae.lm.capture(lm, tokens, [IN, OUT])
    out = jaxsae.decode(sae, jaxsae.encode(sae, seen[IN]))
    assert out.shape == seen[OUT].shape
    # Of tokens in an order that it has never seen, it explains something.
    error = ((out - seen[OUT]) ** 2).sum() / ((seen[OUT] - seen[OUT].mean((0, 1))) ** 2).sum()
    assert float(error) < 1 and 0 < summary["nmse"] < 0.9 and summary["ce_mean"] > 0
    # The unit of the output is not trained.
    assert main(["export", str(folder), "--step", "10", "--out", str(tmp_path / "export")]) == 0
    np.testing.assert_allclose(jaxsae.load(tmp_path / "export").scale_out, sae.scale_out, rtol=1e-5)
    refused(capsys, ["eval", str(folder), "--metrics", "probes"], "probes is not of a transcoder", "standard")
    again = ["train", "--run", str(tmp_path / "again"), *flags, *FEW, *TRANSCODER, "--init-from"]
    refused(capsys, [*again, str(finished)], "--init-from", "none of transcoders, not W_skip, b_in, scale_out")


@pytest.mark.slow
def test_a_crosscoder_is_trained_and_its_sections_reported(flags, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "--run", str(folder), *flags, *FEW, *CROSSCODER]) == 0
    assert jaxsae.describe(folder)["hook"] == CROSSCODER[1:3]
    sae = jaxsae.load(folder)
    assert sae.spec.sections == 2 and sae.d == 64
    assert main(["eval", str(folder), "--metrics", "all", "--tokens", "512", "--n2g.latents", "2"]) == 0
    result = read(folder, "eval.json")
    assert set(CROSSCODER[1:3]) <= set(result["crosscoder"]) and result["crosscoder"]["living"] > 0
    assert "failed" not in result and result["nmse"] > 0 and result["delta_ce"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("coder", [TRANSCODER, [*TRANSCODER, "--objective", "e2e"], CROSSCODER], ids=len)
def test_a_killed_run_ends_with_the_same_bytes(flags, tmp_path, coder):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*flags, "--tokens", "7680", *coder]
    # In a process of its own too: one with several devices may round products differently.
    assert start(whole, flags).wait() == 0
    process = start(killed, flags)
    wait_for_step(process, killed, 20)
    process.kill()
    process.wait()
    assert start(killed, flags).wait() == 0
    for name in ("sae/sae.safetensors", "sae/config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    # Its newest checkpoint is loaded as its export is.
    shutil.rmtree(whole / "sae")
    assert jaxsae.load(whole).spec == jaxsae.load(killed).spec


def test_a_crosscoder_gets_other_hook_points(tmp_path):
    """From its configuration, on the command line and in a sweep."""
    file, third = tmp_path / "config.json", "blocks.2.hook_resid_post"
    base = parse(["train", *CROSSCODER])[0].settings
    file.write_text(to_json(base))
    assert from_json(file) == base and base.sae.sections == 2
    command = parse(["train", "--config", str(file), *CROSSCODER[:3], third, "--sae.sections", "7"])[0]
    assert command.settings.sae.sections == 3 == len(command.settings.lm.hook) and not command.hooks
    assert "--sae.sections has no effect" in without_effect(command.settings, {"--sae.sections"})[0]
    swept = product(base, {"hook": [CROSSCODER[1:3], [*CROSSCODER[1:3], third]]})
    assert [config.sae.sections for config in swept.values()] == [2, 3]
    equals = parse(["train", f"--hook={CROSSCODER[1]}", *CROSSCODER[2:]])[0].settings
    assert equals == base and parse(["train", f"--hook={IN}", OUT])[0].hooks == (IN, OUT)
    apart = ["train", "--config", str(file), *CROSSCODER[:3], "--sae.no-crosscoder"]
    assert parse([*apart, "--sae.sections", "1"])[0].hooks == tuple(CROSSCODER[1:3])
    with pytest.raises(BadInput, match=r"give --sae\.sections 1"):
        parse(apart)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--sae.skip"], "--sae.skip is of a transcoder: give --hook-out"),
        (["--hook-out", OUT], "give --hook too, where it reads"),
        (["--hook", OUT, "--hook-out", IN], f"{IN} is not after {OUT}"),
        ([*TRANSCODER, "--resample-every", "5000"], "--resample-every is of autoencoders"),
        ([*TRANSCODER, "--activations", "synthetic:zipf"], "--hook-out is an array of files, and synthetic"),
        (["--sae.crosscoder"], "--sae.crosscoder is one code of several activations: give --hook A B"),
        ([*CROSSCODER, "--objective", "e2e"], "a crosscoder is trained locally"),
        ([*CROSSCODER, "--hook-out", OUT], "--hook-out is of a transcoder"),
        (["--hook", IN, IN, "--sae.crosscoder"], "two of them are the same"),
        (["--hook", IN, "blocks.1.mlp.hook_post", "--sae.crosscoder"], "give hook points of one width"),
        (["--activations", "synthetic:zipf", "--sae.sections", "7"], "do not divide into so many"),
    ],
)
def test_flags_that_do_not_fit(flags, tmp_path, capsys, given, said):
    refused(capsys, ["train", "--run", str(tmp_path / "run"), *flags, *given], said)
    assert not (tmp_path / "run").exists()
