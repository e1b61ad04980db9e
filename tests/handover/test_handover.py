"""Activations handed over to other tools: read back from their files and compared with plain code."""

import gzip
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxsae import handover
from jaxsae.errors import BadInput
from jaxsae.handover.delphi import Config as Delphi
from jaxsae.handover.neuronpedia import Config as Neuronpedia
from tests.evals.subjects import on_text, random_sae
from tests.evals.test_standard import normalised
from tests.lm import tiny
from tests.sae import dense

HOOK, N = "blocks.1.hook_resid_pre", 64


@pytest.fixture(scope="module")
def case():
    """A subject, its tokens [C, T], and its latents [C, T, n] by plain code."""
    with jax.enable_x64(True):
        sae = random_sae(tiny.WIDTH, N)
        subject = on_text((1, 1), sae, HOOK, contexts=6)
        tokens = subject.source.tokens
        x = np.asarray(jax.jit(lambda lm, t: lm.prefix(t, HOOK))(subject.lm, tokens))
        z = np.asarray(dense.code(sae, normalised(x)[0].reshape(-1, tiny.WIDTH))).reshape(*tokens.shape, N)
        tokenizer = tiny.tokenizer(300)
        facts = subject.facts | {"eval_text": ["text.txt"], "eval_split": "held_out"}
        yield replace(subject, tokenizer=lambda: tokenizer, facts=facts), tokens, z


def configs(**changes):
    return replace(handover.HandoverConfigs(), **changes)


def test_delphi(case, x64, tmp_path):
    subject, tokens, z = case
    handover.write("delphi", subject, tmp_path / "cache", configs(delphi=Delphi(splits=3, module="layers.1")))
    folder = tmp_path / "cache" / "layers.1"
    found, bounds = np.zeros_like(z), []
    for path in folder.glob("*.safetensors"):
        first, last = map(int, path.stem.split("_"))
        bounds.append((first, last))
        split = load_file(path)
        assert (split["locations"].dtype, split["activations"].dtype) == (np.uint16, np.float16)
        context, position, latent = split["locations"].astype(int).T
        assert latent.max(initial=0) <= last - first
        found[context, position, first + latent] = split["activations"]
        np.testing.assert_array_equal(split["tokens"], tokens)
    assert sorted(bounds) == [(0, 20), (21, 41), (42, 63)]
    np.testing.assert_allclose(found, z, atol=1e-3)
    assert ((found > 0) == (z > 1e-5)).all()
    facts = json.loads((folder / "config.json").read_text())
    assert facts["model_name"] == subject.lm.folder and facts["cache_ctx_len"] == tokens.shape[1]


def lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_neuronpedia(case, x64, tmp_path):
    subject, tokens, z = case
    config = Neuronpedia(model_id="tiny", source_set="res", examples=2)
    handover.write("neuronpedia", subject, tmp_path / "import", configs(neuronpedia=config))
    folder = tmp_path / "import"
    source = json.loads((folder / "source.jsonl").read_text())
    assert (source["id"], source["setName"], source["modelId"]) == ("1-res", "res", "tiny")
    assert {path.name for path in folder.glob("*.jsonl")} == {
        f"{name}.jsonl" for name in ("release", "model", "sourceset", "source")
    }
    features, examples = (lines(folder / name / "batch-0.jsonl.gz") for name in ("features", "activations"))
    strings = [subject.tokenizer().backend.decode([i], skip_special_tokens=False) for i in range(tiny.VOCABULARY)]
    W = np.asarray(subject.sae.W_dec)
    logits = np.asarray(subject.lm.unembed(W)) - np.asarray(subject.lm.unembed(0 * W))
    assert [feature["index"] for feature in features] == [str(i) for i in range(N)]
    for i, feature in enumerate(features):
        np.testing.assert_allclose(feature["frac_nonzero"], (z[..., i] > 0).mean())
        np.testing.assert_allclose(feature["maxActApprox"], z[..., i].max(), atol=1e-4)
        assert sum(feature["freq_hist_data_bar_heights"]) == (z[..., i] > 0).sum()
        np.testing.assert_allclose(feature["pos_values"], np.sort(logits[i])[::-1][:10], atol=1e-4)
        np.testing.assert_allclose(feature["neg_values"], np.sort(logits[i])[:10], atol=1e-4)
        own = [example for example in examples if example["index"] == str(i)]
        contexts = [c for c in np.argsort(-z[..., i].max(1), kind="stable")[:2] if z[c, :, i].any()]
        assert [int(example["dataIndex"]) for example in own] == contexts
        for example, c in zip(own, contexts):
            np.testing.assert_allclose(example["values"], z[c, :, i], atol=1e-4)
            assert example["maxValueTokenIndex"] == z[c, :, i].argmax()
            assert len(example["tokens"]) == tokens.shape[1]
            shown = strings[tokens[c, 0]]
            assert "\ufffd" in shown or not shown or example["tokens"][0] == shown
    assert len({example["id"] for example in examples}) == len(examples)


def test_what_cannot_be_handed_over(case, tmp_path):
    subject, _, _ = case
    with pytest.raises(BadInput, match=r"--delphi\.splits is 65: allowed is up to the number of latents, 64"):
        handover.write("delphi", subject, tmp_path / "a", configs(delphi=Delphi(splits=65)))
    with pytest.raises(BadInput, match="is there already"):
        handover.write("delphi", subject, tmp_path)
    with pytest.raises(BadInput, match="give --lm and --text"):
        handover.write("delphi", replace(subject, lm=None), tmp_path / "b")
    assert not [*tmp_path.iterdir()]
