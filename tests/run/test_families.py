"""Each family of language models, trained on end to end and evaluated, from a folder that transformers wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxsae.cli import main
from jaxsae.config import Config, with_fields
from jaxsae.lm import load
from jaxsae.planning import width
from jaxsae.planning.language_model import lm_bytes
from tests.marks import slow

FOLDER = Path(__file__).parents[1] / "lm" / "families"
NAMES = sorted(path.name for path in FOLDER.iterdir())
# Two soft-caps, windows, norms around each sublayer: the most that a family has.
DEFAULT = "gemma2"


@pytest.fixture
def flags(tmp_path):
    """Flags of a run of 100 steps, on token ids of which each is at most two more than the one before."""
    ids = np.cumsum(np.random.default_rng(0).integers(0, 3, 40_000)) % 97
    np.save(tmp_path / "ids.npy", ids.astype(np.uint16))
    flags = f"--text tokens:{tmp_path / 'ids.npy'} --cache {tmp_path / 'cache'} --context 16 --batch-size 128"
    flags += " --objective e2e --tokens 12800 --eval-tokens 512 --sae.n 64 --sae.k 4 --lr 3e-3"
    return f"{flags} --log-every 10 --checkpoint-every 50 --keep-checkpoints 10".split()


@pytest.mark.parametrize("name", [DEFAULT, *(slow(name) for name in NAMES if name != DEFAULT)])
def test_end_to_end_training_of_a_family_learns_and_resumes_to_the_same_bytes(name, flags, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    mesh = ["--mesh", "1", "1"] if name == DEFAULT else ["--mesh", "4", "2"]
    flags = ["--lm", str(FOLDER / name), *flags, *mesh]
    assert main(["train", "--run", str(whole), *flags]) == 0
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 100 and rows[-1]["kl"] < 0.8 * rows[0]["kl"]
    summary = json.loads((whole / "summary.json").read_text())
    numbers = [summary[key] for key in ("kl", "nmse", "ce_original", "ce_substituted", "ce_recovered", "flops")]
    assert np.isfinite(numbers).all() and 0 < summary["kl"] < rows[0]["kl"]
    # As a run that was stopped after step 50.
    shutil.copytree(whole, cut)
    for path in ("checkpoints/100", "sae"):
        shutil.rmtree(cut / path)
    (cut / "summary.json").unlink()
    assert main(["train", "--run", str(cut), "--resume", *flags]) == 0
    assert (cut / "sae/sae.safetensors").read_bytes() == (whole / "sae/sae.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_evaluated_at_hook_points_beside_the_stream(name, flags, tmp_path):
    flags = ["--lm", str(FOLDER / name), *flags, "--objective", "local", "--tokens", "2560", "--mesh", "1", "1"]
    for hook in ("attn.hook_z", "mlp.hook_post", "hook_mlp_out"):
        run = tmp_path / hook
        assert main(["train", "--run", str(run), *flags, "--hook", f"blocks.1.{hook}"]) == 0
        assert main(["eval", str(run), "--tokens", "512", "--metrics", "standard", "later_layers"]) == 0
        measured = json.loads((run / "eval.json").read_text())
        assert measured["kl"] > 0 and "blocks.1.hook_resid_post" in measured["later_layers"]


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_knows_the_width_and_the_weights_of_a_family(name):
    config = with_fields(Config(), lm=str(FOLDER / name), hook="blocks.0.attn.hook_z")
    lm = load(str(FOLDER / name))
    heads = lm.config.attention
    assert width.widths(config) == (heads.n_head * heads.head_dim, None)
    planned = lm_bytes(config, width.lm_config(config), 1, "cpu")
    assert planned["lm"] == sum(leaf.nbytes for leaf in _leaves(lm.params))


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]
