"""Flags: their defaults, old names, and those without effect."""

import pytest

from jaxsae import compatibility
from jaxsae.cli import COMMANDS, default_config, main, parse
from jaxsae.config import Config, from_json, with_fields, without_effect
from jaxsae.presets import PRESETS
from tests.run.commands import refused


def test_flags_without_effect_are_named(finished, capsys):
    """Those that were typed; not those of a preset."""
    typed = "--sparsity 3 --e2e-downstream.downstream-coef=2 --lr_end 0 --max-resamples 2 --auxk-coef 0 --k-aux 4"
    assert main(["train", "--run", str(finished), *typed.split(), "--sae.jumprelu.bandwidth", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7 and "exists" in lines.pop()
    why = {line.split()[1]: line for line in lines}
    assert "topk" in why["--sparsity"] and "local" in why["--e2e-downstream.downstream-coef"]
    assert "constant" in why["--lr-end"] and "topk" in why["--sae.jumprelu.bandwidth"]
    assert "--resample-every" in why["--max-resamples"] and "AuxK" in why["--k-aux"]
    used = "--sparsity 3 --sae.activation relu --schedule linear --lr-end 0 --k-aux 4 --auxk-coef 1 --max-resamples 2"
    used += " --resample-every 500000 --objective e2e_downstream --e2e-downstream.downstream-coef 2"
    assert main(["train", "--run", str(finished), *used.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["train", "--run", str(finished), "--preset", "braun-embedded-e2e", "--sae.activation", "topk"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_renamed_flags_are_accepted_and_said(capsys):
    old = "--objective e2e --kl-coef 2 --start X --error-unit=one --sae.p 0.5 --chunk 3 --clip 1".split()
    new, notes = compatibility.current_flags(old, "local")
    expected = "--objective e2e --e2e.kl-coef 2 --init-from X --mse-scale=none --sae.exponent 0.5 --buffer-batches 3"
    assert new == [*expected.split(), "--grad-clip", "1"]
    assert len(notes) == 6 and "--start is called --init-from now" in notes[1]
    assert compatibility.current_flags(["--error-unit", "one"], "local")[0] == ["--mse-scale", "none"]
    command, flags = parse(["train", *"--objective e2e_downstream --downstream-coef 3 --batch-size 2048".split()])
    assert command.settings.training.objectives.e2e_downstream.downstream_coef == 3
    assert flags == {"--objective", "--e2e-downstream.downstream-coef", "--batch-size"}
    for start, renamed, current in (
        ("--preset braun-embedded-e2e_downstream", "--kl-coef", "--e2e-downstream.kl-coef"),
        ("--objective local", "--kl-coef", "--e2e.kl-coef"),
        ("--objective finetune_kl", "--kl-chunk", "--finetune-kl.kl-chunk"),
        ("--objective=finetune_kl", "--kl-coef", "--e2e.kl-coef"),
    ):
        assert current in parse(["train", *start.split(), renamed, "3"])[1]
    assert "--downstream-coef is called --e2e-downstream.downstream-coef now" in capsys.readouterr().err


def test_a_preset_gives_the_flags_their_defaults(capsys):
    for name, config in PRESETS.items():
        assert default_config(["--preset", name]) == default_config([f"--preset={name}"]) == config
    with pytest.raises(SystemExit):
        main(["train", "--preset", "braun-gpt2-small-l6-e2e", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: gpt2)" in text and "(default: blocks.6.hook_resid_pre)" in text


def test_a_file_gives_the_flags_their_defaults(finished, tmp_path, capsys):
    command, _ = parse(["train", "--config", str(finished / "config.json"), "--sae.k", "8"])
    # But for the folder that it was written into.
    assert command.settings == with_fields(from_json(finished / "config.json"), **{"sae.k": 8, "run": None})
    by_hand = tmp_path / "config.json"
    by_hand.write_text('{"sae": {"n": 512}, "training": {"batch": {"tokens": 1000}}, "format": 4}')
    assert default_config(["--config", str(by_hand)]) == with_fields(Config(), **{"sae.n": 512, "tokens": 1000})
    by_hand.write_text('{"sae": {"n": 512}, "training": {"batch": {"tokens": 1000}}}')
    assert default_config(["--config", str(by_hand)]) == with_fields(Config(), **{"sae.n": 512, "tokens": 1000})
    for document, message in (
        ('{"format": 2, "sae": {"m": 512}}', "sae.m"),
        ('{"format": 5}', "newer version"),
        ('{"format": 2, "sae": 5}', "sae 5"),
        ('{"sae": {"n": 512.0}}', "give a whole number"),
        ('{"training": {"mse_scale": "var"}}', "training.mse_scale 'var': allowed are variance, none"),
        ((finished / "sae" / "config.json").read_text(), "that of an exported autoencoder"),
        ("[]", "no JSON object"),
        ("{", "config.json"),
    ):
        by_hand.write_text(document)
        refused(capsys, ["train", "--config", str(by_hand)], message)
    refused(capsys, ["train", "--config", str(by_hand), "--preset", "gao-embedded"], "--config and --preset")


def test_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    refused(capsys, ["trian"], "'trian'", "train")


def test_a_scale_of_a_penalty_that_is_not_in_use_is_named():
    for flags, count in (
        ({}, 1),
        ({"sae.activation": "jumprelu"}, 1),
        ({"sae.activation": "jumprelu", "sae.penalty": "tanh"}, 0),
    ):
        notes = without_effect(with_fields(Config(), **flags), {"--sae.tanh-scale"})
        assert len(notes) == count and all("--sae.penalty is not tanh" in note for note in notes)


def test_an_evaluation_keeps_compiled_programs_where_its_run_keeps_them(finished, monkeypatch):
    kept = []
    monkeypatch.setattr("jaxsae.run.compiled.keep_compiled", kept.append)
    monkeypatch.setattr("jaxsae.run.evaluate.evaluate", lambda *_: {})
    assert main(["eval", str(finished)]) == 0
    assert kept == [from_json(finished / "config.json").data.cache] and kept[0]


def test_a_resumed_run_has_its_own_settings(finished, capsys):
    """What is typed counts, and is refused if the result would be another."""
    own = from_json(finished / "config.json")
    resumed = default_config(["--run", str(finished), "--resume"])
    assert resumed == with_fields(own, run=None, resume=False) and own.sae.n == 64
    assert default_config(["--run", str(finished)]) == Config()
    assert default_config(["--run", str(finished), "--resume", "--init-from", "elsewhere"]) == resumed
    refused(capsys, ["train", "--run", str(finished), "--resume", "--sae.k", "5"], "--sae.k was 4, not 5", "leave out")
