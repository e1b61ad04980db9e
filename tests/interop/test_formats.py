"""Files as projects publish them that no fixture holds, and what formats leave open."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import jaxsae
from jaxsae.errors import BadInput
from tests.interop import foreign_files, plain
from tests.interop.families import D, K, N, activations
from tests.interop.foreign_files import _arrays
from tests.interop.peers import Peer

X = activations().astype(np.float64)
SCALE = D**0.5 / 7


def jumprelu(theta, scale=1.0, by=1.0, b=0.0, k=None):
    """(latents, reconstructions) as the projects' documents say, in float64 from the arrays themselves."""
    a = {name: value.astype(np.float64) for name, value in _arrays().items()}
    u = ((scale * X - b * a["b_dec"]) @ a["W_enc"].T + a["b_enc"]) * by
    kept = u > theta if k is None else u >= np.sort(u, 1)[:, -k, None]
    z = np.where(kept & (u > 0), u, 0)
    return z, ((z / by) @ a["W_dec"] + a["b_dec"]) / scale


NORMS = np.linalg.norm(_arrays()["W_dec"], axis=1)
# What is written, what must be given, what it computes, and what it says of its place.
CASES = {
    "gemma_scope_2": (
        foreign_files.gemma_scope_2,
        {},
        lambda: jumprelu(_arrays()["threshold"]),
        "blocks.3.hook_resid_post",
    ),
    "llama_scope": (foreign_files.llama_scope, {}, lambda: jumprelu(0.8 * SCALE, SCALE), "blocks.3.hook_resid_post"),
    "llama_scope_r1": (
        foreign_files.llama_scope_r1,
        {"input_scale": SCALE},
        lambda: jumprelu(_arrays()["threshold"], SCALE),
        "blocks.3.hook_resid_post",
    ),
    "qwen_scope": (foreign_files.qwen_scope, {"k": K}, lambda: jumprelu(0, k=K), "blocks.3.hook_resid_post"),
    "circuit_tracer": (foreign_files.circuit_tracer, {}, lambda: jumprelu(0), "blocks.3.mlp.hook_in"),
    "matryoshka_training": (foreign_files.matryoshka_training, {}, lambda: jumprelu(1.25, by=NORMS, b=1), None),
}


@pytest.mark.parametrize("name", CASES)
def test_files_compute_what_their_projects_say(tmp_path, name):
    make, given, formula, hook = CASES[name]
    make(tmp_path / name)
    sae, about = jaxsae.load(tmp_path / name, **given), jaxsae.describe(tmp_path / name, **given)
    for ours, theirs in zip(plain.outputs(sae, X), formula()):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * np.abs(theirs).max())
        np.testing.assert_array_equal(ours != 0, theirs != 0)
    assert about["hook"] == hook and about["spec"] == dataclasses.asdict(sae.spec)
    json.dumps(about)
    if name == "matryoshka_training":
        assert sae.spec.prefixes == (24, N) and sae.spec.k == K
    if name == "circuit_tracer":
        assert (
            about["hook_out"] == "blocks.3.hook_mlp_out" and about["lm"] == "Qwen/Qwen3-0.6B" and sae.b_in is not None
        )


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    foreign_files.qwen_scope(tmp_path)
    with pytest.raises(BadInput, match=r"does not say k, and nothing is guessed: give --sae.k \(in Python: k=...\)"):
        jaxsae.load(tmp_path)
    assert jaxsae.load(tmp_path, k=3).spec.k == 3
    with pytest.raises(BadInput, match=r"says that hook is blocks.3.hook_resid_post, and --hook is"):
        jaxsae.load(tmp_path, k=3, hook="blocks.2.hook_mlp_out")
    with pytest.raises(
        BadInput, match="topk: nothing is known by that name; what may be given is hook, hook_out, lm, k"
    ):
        jaxsae.load(tmp_path, topk=3)
    with pytest.raises(
        BadInput, match=r"is not of format sae_lens: such a folder has sae_weights.safetensors, cfg.json"
    ):
        jaxsae.load(tmp_path, format="sae_lens")
    with pytest.raises(BadInput, match="there is no format 'saelens': allowed are sae_lens"):
        jaxsae.load(tmp_path, format="saelens")


def test_what_saelens_leaves_open(shared):
    shared("fixtures/peers/saelens")
    average = Peer("saelens/topk_expected_average").path
    with pytest.raises(BadInput, match=r"does not say input_scale, and nothing is guessed: give --sae.input-scale"):
        jaxsae.load(average)
    with pytest.raises(BadInput, match=r"says that k is 5, and --sae.k is 6: leave it out"):
        jaxsae.load(Peer("saelens/topk_bdec0_rescale0").path, k=6)


def rewritten(name: str, tmp_path, **changes):
    """A fixture of SAELens with another configuration."""
    folder = shutil.copytree(Peer(name).path, tmp_path / "rewritten", dirs_exist_ok=True)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))
    return folder


def test_the_language_model_of_saelens(tmp_path, shared):
    """By TransformerLens's name, and with its processing."""
    shared("fixtures/peers/saelens")
    metadata = {"sae_lens_version": "6.0.0", "hook_name": "blocks.1.hook_resid_pre"}
    for said, lm, processed in (
        ({"model_name": "gpt2-small", "model_from_pretrained_kwargs": {"center_writing_weights": True}}, "gpt2", True),
        ({"model_name": "pythia-70m-deduped"}, "EleutherAI/pythia-70m-deduped", False),
        ({"model_name": "EleutherAI/gpt-neo-125m", "model_from_pretrained_kwargs": {"fold_ln": True}}, None, False),
    ):
        about = jaxsae.describe(rewritten("saelens/standard_bdec1", tmp_path, metadata=metadata | said))
        assert (about["lm"], about["process_weights"]) == (lm or said["model_name"], processed)
    about = jaxsae.describe(tmp_path / "rewritten", lm="elsewhere")
    assert about["lm"] == "elsewhere"


def test_what_is_not_computed_is_refused_by_name(tmp_path, shared):
    shared("fixtures/peers/saelens")
    for name, changes, message in (
        (
            "saelens/standard_bdec1",
            {"normalize_activations": "covariance_whitening"},
            "'covariance_whitening': jaxsae reads",
        ),
        ("saelens/standard_bdec1", {"architecture": "temporal"}, "architecture 'temporal': jaxsae reads standard"),
        ("saelens/standard_bdec1", {"d_sae": 95}, r"W_enc of shape \[24, 96\], and cfg.json says d_in 24, d_sae 95"),
        ("saelens/standard_bdec1", {"architecture": "gated"}, "lacks b_gate, r_mag, b_mag"),
        ("saelens/gated_bdec1", {"architecture": "standard"}, "lacks b_enc"),
        ("saelens/jumprelu_bdec1", {"architecture": "standard"}, "holds threshold, which jaxsae does not know"),
        ("saelens_v5/standard", {"activation_fn_str": "tanh-relu"}, "activation function 'tanh-relu'"),
        ("saelens_v5/standard", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor True"),
        ("saelens_v5/standard", {"normalize_activations": True}, "does not say input_scale"),
    ):
        with pytest.raises(BadInput, match=message):
            jaxsae.load(rewritten(name, tmp_path, **changes))
    shared("fixtures/peers/e2e_sae")
    with pytest.raises(
        BadInput, match=r"holds autoencoders of blocks.1.hook_resid_pre, blocks.2.hook_resid_post: give"
    ):
        jaxsae.load(Peer("e2e_sae/wandb_two_positions").path)


def test_a_file_on_the_hub(tmp_path, monkeypatch):
    """Only what one autoencoder needs is asked for; here it lies in the hub's cache already."""
    import huggingface_hub
    from huggingface_hub import constants

    cache = tmp_path / "models--some--transcoders"
    foreign_files.circuit_tracer(cache / "snapshots/abc/width_16k")
    foreign_files.gemma_scope_2(cache / "snapshots/abc/resid_post/layer_3")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    download, asked = huggingface_hub.snapshot_download, []

    def noted(name, allow_patterns):
        asked.append(allow_patterns)
        return download(name, allow_patterns=allow_patterns)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", noted)
    assert jaxsae.load("some/transcoders", "width_16k/layer_3.safetensors").n == N
    assert "width_16k/layer_3.safetensors" in asked[0] and "width_16k/config.yaml" in asked[0]
    assert not any("*" in pattern or pattern.endswith(".pt") for pattern in asked[0])
    assert jaxsae.describe("some/transcoders", "resid_post/layer_3")["hook"] == "blocks.3.hook_resid_post"
    assert "resid_post/layer_3/params.safetensors" in asked[1] and not any("*" in pattern for pattern in asked[1])
    with pytest.raises(BadInput, match="layer_9 holds no autoencoder"):
        jaxsae.load("some/transcoders", "resid_post/layer_9")
    with pytest.raises(BadInput, match="some/others is neither here nor could it be had from the hub"):
        jaxsae.load("some/others", "layer_3")


def test_the_folder_above_names_the_autoencoders_in_it(tmp_path):
    (tmp_path / "notes").mkdir()
    for layer in (1, 2):
        foreign_files.gemma_scope_2(tmp_path / f"layer_{layer}")
    with pytest.raises(BadInput, match="no autoencoder itself, but inside are layer_1, layer_2: give one of them"):
        jaxsae.load(tmp_path)


def test_what_is_given_is_not_ignored(tmp_path):
    foreign_files.gemma_scope_2(tmp_path)
    for given, message in (
        ({"k": 50}, "has k 1, and --sae.k is 50: leave it out"),
        ({"normalise": "ln_std"}, "has normalise none, and --sae.normalise is ln_std: leave it out"),
        ({"subtract_b_dec": True}, "has subtract_b_dec False, and --sae.subtract-b-dec is True: leave it out"),
        ({"unit_norm_decoder": False}, "--sae.unit-norm-decoder is of dictionary_learning's AutoEncoder"),
        ({"input_scale": 2.0}, "--sae.input-scale is 2.0, and .* scales nothing: leave it out"),
    ):
        with pytest.raises(BadInput, match=message):
            jaxsae.load(tmp_path, **given)
