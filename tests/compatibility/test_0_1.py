"""What version 0.1 wrote (configurations and checkpoints of format 1): it loads, evaluates and resumes.

`run_0_1` is a run of 8 steps with checkpoints of steps 4 and 8, `export_0_1` its export, of 16 latents, made by

    jaxsae train --run run --text text.txt --tokens 2048 --batch-size 256 --context 32 --sae.n 16 --sae.k 2 \
        --checkpoint-every 4 --eval-tokens 512 --mesh 1 1 --lr 1e-3
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxsae
from jaxsae.cli import main, parse
from jaxsae.config import Config, differences, from_dict, from_json, to_dict, with_fields
from jaxsae.errors import BadInput

HERE = Path(__file__).parent


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with copies of all, in which text.txt is found; the run was started in such a one."""
    for name in ("run_0_1", "export_0_1"):
        shutil.copytree(HERE / name, tmp_path / name)
    shutil.copy(HERE / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_an_export_loads_and_evaluates(there):
    sae, about = jaxsae.load("export_0_1"), jaxsae.describe("export_0_1")
    assert sae.n == 16 and about["hook"] == "blocks.3.hook_resid_post" and about["steps"] == 8
    assert main(["eval", "export_0_1", "--tokens", "512"]) == 0
    measured, summary = (json.loads(Path(p).read_text()) for p in ("export_0_1/eval.json", "run_0_1/summary.json"))
    for name in ("step", "tokens", "loss", "nmse", "l0", "kl", "delta_ce", "dead_fraction"):
        assert measured[name] == pytest.approx(summary[name], rel=1e-5), name


def test_a_run_resumes(there):
    """From step 4 to where it ended; only the rounding of a few sums differs between the versions."""
    shutil.rmtree("run_0_1/checkpoints/8")
    assert main(["train", "--config", "run_0_1/config.json", "--run", "run_0_1", "--resume"]) == 0
    before, after = jaxsae.load("export_0_1"), jaxsae.load("run_0_1")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=1e-5, err_msg=name)
    assert main(["eval", "run_0_1", "--tokens", "512"]) == 0
    # Its defaults were others: with its own command line it has what it had.
    own = "--text text.txt --tokens 2048 --batch-size 256 --context 32 --sae.n 16 --sae.k 2 --mesh 1 1"
    command, _ = parse(["train", "--run", "run_0_1", "--resume", *own.split()])
    assert differences(from_json(Path("run_0_1/config.json")), command.settings) == []


def test_configurations_of_format_1():
    old = json.loads((HERE / "run_0_1" / "config.json").read_text())
    config = from_json(HERE / "run_0_1" / "config.json")
    assert config.training.optimizer.lr == 1e-3
    implied = from_dict({**old, "training": {**old["training"], "lr": None}}, "here")
    assert implied.training.learning_rate(implied.sae) == pytest.approx(2e-4 / (16 / 2**14) ** 0.5)
    # Format 2 had another rule too, by the tokens.
    second = to_dict(with_fields(Config(), tokens=2_500_000)) | {"format": 2}
    assert from_dict(second, "here").training.optimizer.lr == pytest.approx(2e-4 * 2 * 2)
    # Up to format 3 AuxK waited as long as what made a latent dead, by default a fifth of the run.
    assert from_dict(second, "here").training.auxk_window() == 500_000 and config.training.auxk_window() == 409
    third = to_dict(with_fields(Config(), tokens=2_500_000, dead_after=70, lr=1e-3)) | {"format": 3}
    assert from_dict(third, "here") == with_fields(Config(), tokens=2_500_000, dead_after=70, lr=1e-3)
    assert config.training.batch.tokens == 2048 and config.sae.k == 2 and config.data.buffer_batches == 16
    old["sae"] |= {"activation": "relu", "penalty": "lp", "p": 0.5, "bandwidth": 0.1, "select": "bfloat16"}
    old["training"] |= {"objective": "e2e_downstream", "kl_coef": 0.7, "downstream_coef": 3.0, "kl_chunk": 64}
    old["training"] |= {"error_unit": "one", "clip": 2.0, "resamples": 3, "start": "elsewhere"}
    config = from_dict(old, "here")
    assert config.sae.sparsity.exponent == 0.5 and config.sae.select_precision == "bfloat16"
    own = config.training.objectives.e2e_downstream
    assert (own.kl_coef, own.downstream_coef, own.kl_chunk) == (0.7, 3.0, 64)
    assert config.training.mse_scale == "none" and config.training.optimizer.grad_clip == 2.0
    assert config.training.dead.max_resamples == 3 and config.training.init_from == "elsewhere"
    old["training"]["form"] = "paper"
    with pytest.raises(BadInput, match=r"training\.form, which this version does not know"):
        from_dict(old, "here")
