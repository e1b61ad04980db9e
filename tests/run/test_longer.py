"""A run that has ended, or was stopped, is trained for longer."""

import json
import shutil

import pytest

import jaxsae
from jaxsae.cli import main
from jaxsae.config import Config, differences, flags_for_longer, from_json, resumed, to_json, with_fields
from jaxsae.errors import BadInput
from jaxsae.run import folder
from tests.run.commands import refused


def test_a_run_that_is_trained_for_longer_ends_with_the_bits_of_one_asked_for_so_many_at_once(
    finished, flags, tmp_path, capsys
):
    """The last step of the shorter one, 58, is none at which a checkpoint is due."""
    shutil.copytree(finished, tmp_path / "run")
    train = lambda name, *more: ["train", "--run", str(tmp_path / name), *flags, "--eval-tokens", "512", *more]
    # What follows from the number of tokens is named, with the values that keep it.
    more = ["--resume", "--tokens", "15872"]
    keep = ["--ema", str(1 - 10 / 58), "--dead-after", "2969", "--auxk-after", "185"]
    refused(capsys, train("run", *more), "--ema was 0.827", f"add {' '.join(keep)}")
    refused(capsys, train("run", "--resume", "--tokens", "1000"), "--tokens was 14848, not 1000")
    refused(capsys, train("run", *more, "--sae.k", "5", *keep), "--sae.k was 4, not 5; leave out")
    # Its other settings are its own, typed or not.
    assert main(["train", "--run", str(tmp_path / "run"), *more, *keep]) == 0
    assert main(train("whole", "--tokens", "15872", *keep)) == 0
    read = lambda name: [(tmp_path / name / "sae" / f).read_bytes() for f in ("sae.safetensors", "config.json")]
    assert read("run") == read("whole")
    assert from_json(tmp_path / "run" / "config.json").training.batch.tokens == 15872
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["step"] == 62
    # Until it has come to its new end, the summary and the export of the first one are not its own.
    config = with_fields(from_json(tmp_path / "run" / "config.json"), tokens=20000)
    (tmp_path / "run" / "config.json").write_text(to_json(config))
    assert jaxsae.describe(tmp_path / "run")["config"]["training"]["batch"]["tokens"] == 20000


def test_what_follows_from_the_tokens_has_to_stay():
    saved = with_fields(Config(), tokens=1_000_000)
    longer = with_fields(saved, tokens=2_000_000)
    assert [line.split()[0] for line in differences(saved, longer)] == ["--lr", "--ema", "--dead-after", "--auxk-after"]
    # By the rules: the rate for so many tokens; 1 - 10 / steps up to 0.999; a fifth of the tokens, and an eightieth.
    lr = saved.training.learning_rate(saved.sae)
    assert flags_for_longer(saved, longer) == f"--lr {lr} --ema {1 - 10 / 489} --dead-after 200000 --auxk-after 12500"
    kept = with_fields(longer, lr=lr, ema=1 - 10 / 489, dead_after=200_000, auxk_after=12_500)
    assert differences(saved, kept) == []
    assert differences(saved, with_fields(kept, lr=1e-3)) == [f"--lr was {lr}, not 0.001"]
    # Without AuxK nothing waits for it.
    assert [line.split()[0] for line in differences(*(with_fields(c, auxk_coef=0.0) for c in (kept, longer)))] == [
        *("--lr", "--ema", "--dead-after")
    ]
    # Beyond 800 million tokens and 10,000 steps a run at the paper's rate depends on its tokens no more.
    long = with_fields(saved, tokens=800_000_000, lr="paper")
    assert differences(long, with_fields(long, tokens=900_000_000)) == []
    assert differences(longer, saved)[0] == "--tokens was 2000000, not 1000000"
    assert resumed(saved, kept) == kept


def test_a_schedule_ends_with_its_run():
    saved = with_fields(Config(), tokens=60_000_000, lr="paper", schedule="cosine", auxk_after=10**6)
    longer = with_fields(saved, tokens=61_000_000)
    assert differences(saved, longer) == ["--schedule was cosine to step 29297, not cosine to step 29786"]
    assert flags_for_longer(saved, longer) == ""


def test_a_resampling_at_the_end_has_to_have_been():
    """The last step of a run resamples nothing; in a longer one it would."""
    saved = with_fields(Config(), tokens=2048 * 20_000, lr="paper", resample_every=2048 * 10_000, dead_after=10**6)
    longer = with_fields(saved, tokens=2048 * 40_000)
    assert differences(saved, longer) == ["--max-resamples was 1, not 2"]
    assert flags_for_longer(saved, longer) == "--max-resamples 1"
    assert differences(saved, with_fields(longer, max_resamples=1)) == []
    saved = with_fields(saved, tokens=2048 * 20_001)
    assert differences(saved, longer) == []


def test_a_longer_run_that_would_read_its_data_in_another_order_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"data_order": "all 10 contexts"}')
    folder.check_order(tmp_path, "all 10 contexts")
    with pytest.raises(
        BadInput, match=r"in another order \(windows of 8 shards\) .* \(all 10 contexts\): .* --init-from"
    ):
        folder.check_order(tmp_path, "windows of 8 shards")
    folder.check_order(tmp_path / "new", "windows of 8 shards")
