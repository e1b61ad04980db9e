"""Files as other projects publish them, with random numbers: those of which there is no fixture."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.interop.families import D, K, N, random_sae, skip
from tests.torch_files import save

# How SAELens's loader is to read params.npz here.
GEMMA = {
    "loader": "gemma_2_sae_huggingface_loader",
    "repo": "google/gemma-scope-2b-pt-res",
    "folder": "layer_3/width_16k/average_l0_71",
    "overrides": {"d_in": D, "d_sae": N},
    "flat": True,
}


def _arrays() -> dict:
    sae = random_sae("jumprelu", subtract=False, seed=3)
    threshold = np.exp(sae.extra["log_threshold"])
    return {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "threshold": threshold}


def _safetensors(file: Path, arrays: dict):
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, file)


def _document(file: Path, value: dict):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def gemma_scope_2(folder: Path, affine: bool = False):
    a = _arrays()
    arrays = {"w_enc": a["W_enc"].T, "b_enc": a["b_enc"], "w_dec": a["W_dec"], "b_dec": a["b_dec"]}
    arrays |= {"threshold": a["threshold"]} | ({"affine_skip_connection": skip()["W_skip"]} if affine else {})
    _safetensors(folder / "params.safetensors", arrays)
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.3.output"}
    if affine:
        config |= {"hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output", "affine_connection": True}
        config |= {"hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output"}
    _document(folder / "config.json", config)


def llama_scope(folder: Path):
    a = _arrays()
    _safetensors(folder / "checkpoints/final.safetensors", _linear(a))
    norms = {"in": 7.0, "out": 7.0}
    config = {"d_model": D, "d_sae": N, "jump_relu_threshold": 0.8, "dataset_average_activation_norm": norms}
    _document(folder / "hyperparams.json", config | {"hook_point_in": "blocks.3.hook_resid_post"})


def llama_scope_r1(folder: Path):
    a = _arrays()
    _safetensors(folder / "sae_weights.safetensors", _linear(a) | {"log_jumprelu_threshold": np.log(a["threshold"])})
    _document(
        folder / "config.json", {"d_model": D, "expansion_factor": N // D, "hook_point_in": "blocks.3.hook_resid_post"}
    )


def _linear(a: dict) -> dict:
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.bias": "b_dec"}
    return {name: a[ours] for name, ours in names.items()} | {"decoder.weight": a["W_dec"].T}


def qwen_scope(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    a = _arrays()
    copied = lambda x: np.array(x, order="C")
    save(folder / "layer3.sae.pt", {name: copied(a[name].T if name == "W_dec" else a[name]) for name in list(a)[:4]})


def circuit_tracer(folder: Path):
    a = _arrays()
    _safetensors(folder / "layer_3.safetensors", {name: a[name] for name in list(a)[:4]})
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    _document(folder / "config.yaml", {"model_name": "Qwen/Qwen3-0.6B", "model_kind": "transcoder_set"} | hooks)
    known = {"d_model": D, "d_feature": N, "batch_size": 128}
    _document(folder / "wandb-config.yaml", {name: {"value": value} for name, value in known.items()})


def matryoshka_training(folder: Path):
    """A training file of SAELens, decoder rows not folded."""
    a = _arrays()
    arrays = {"W_enc": a["W_enc"].T, "b_enc": a["b_enc"], "W_dec": a["W_dec"], "b_dec": a["b_dec"]}
    _safetensors(folder / "sae_weights.safetensors", arrays | {"topk_threshold": np.float64(1.25)})
    config = {"architecture": "matryoshka_batchtopk", "d_in": D, "d_sae": N, "k": float(K), "dtype": "float32"}
    config |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "rescale_acts_by_decoder_norm": True}
    _document(folder / "cfg.json", config | {"matryoshka_widths": [24, N], "metadata": {"sae_lens_version": "6.54.12"}})


def make_all(root: Path) -> dict[str, tuple[Path, dict, dict]]:
    """Write them under `root`: {name: (what jaxsae reads, what it must be given, the job of SAELens)}."""
    hub = lambda loader, folder, overrides=None, **more: {
        "library": "sae_lens_loader",
        "loader": loader,
        "repo": "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5",
        "folder": folder,
        "overrides": overrides or {},
        **more,
    }
    scale = D**0.5 / 7
    jobs = {
        "gemma_scope_2": (
            gemma_scope_2,
            "layer_3_resid_post",
            {},
            hub("gemma_3_sae_huggingface_loader", "layer_3_resid_post"),
        ),
        "llama_scope": (llama_scope, "L3R", {}, hub("llama_scope_sae_huggingface_loader", "L3R", scale=scale)),
        "llama_scope_r1": (
            llama_scope_r1,
            "L3R",
            {"input_scale": scale},
            hub("llama_scope_r1_distill_sae_huggingface_loader", "L3R", scale=scale),
        ),
        "qwen_scope": (
            qwen_scope,
            ".",
            {"k": K},
            hub(
                "qwen_scope_sae_huggingface_loader",
                "layer3.sae.pt",
                {"d_in": D, "d_sae": N, "activation_fn_kwargs": {"k": K}},
            ),
        ),
        "circuit_tracer": (
            circuit_tracer,
            ".",
            {},
            hub("mwhanna_transcoder_huggingface_loader", "layer_3.safetensors"),
        ),
    }
    if skip():
        jobs["gemma_scope_2_affine"] = (
            lambda folder: gemma_scope_2(folder, True),
            "transcoder/layer_3_affine",
            {},
            hub("gemma_3_sae_huggingface_loader", "transcoder/layer_3_affine"),
        )
    out = {}
    for name, (make, inside, given, job) in jobs.items():
        make(root / name / inside)
        _document(root / name / "job.json", job)
        out[name] = root / name / inside, given, job
    return out
