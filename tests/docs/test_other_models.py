"""The script of docs/other-models.md, as it stands, on a tiny random model of a family that is not here."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxsae.cli import main
from jaxsae.lm.architecture import ARCHITECTURES

PAGE = (Path(__file__).parents[2] / "docs" / "other-models.md").read_text()


def tiny_opt(folder, vocabulary):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=8,
        ffn_dim=64,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    transformers.OPTForCausalLM(config).save_pretrained(folder)


@pytest.mark.slow
def test_activations_of_another_model_are_written_and_trained_on(tiny_lm, tiny_text, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    from transformers import PreTrainedTokenizerFast

    monkeypatch.chdir(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tiny_lm / "tokenizer.json"))
    tiny_opt(tmp_path / "opt", len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "opt")
    assert json.loads((tmp_path / "opt" / "config.json").read_text())["model_type"] not in ARCHITECTURES
    Path("corpus.txt").write_text(tiny_text.read_text()[:60_000])
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(script.replace("facebook/opt-125m", str(tmp_path / "opt")), names)
    files = [load_file(path) for path in sorted(Path("acts").iterdir())]
    x, tokens = (np.concatenate([file[name] for file in files]) for name in ("x", "tokens"))
    assert x.shape == (*tokens.shape, 32) and tokens.shape[1] == 128
    # What transformers itself calls the state after the seventh of eight blocks.
    some = names["tokens"][0][:2]
    want = names["model"](input_ids=some, output_hidden_states=True).hidden_states[7]
    np.testing.assert_array_equal(files[0]["tokens"][:2], some)
    np.testing.assert_allclose(files[0]["x"][:2], want.detach().numpy(), atol=1e-5)
    commands = [shlex.split(line)[1:] for line in PAGE.splitlines() if line.startswith("    jaxsae ")]
    for command in commands:
        assert main([*command, "--cache", "cache"] if command[0] == "train" else command) == 0
    summary = json.loads(Path("runs/opt/summary.json").read_text())
    assert summary["nmse"] < 1 and summary["l0"] == 16
