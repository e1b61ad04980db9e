"""The standard metrics under the names of SAEBench's `core` evaluation (version 0.6), so that its tools read them.

What is not measured here is -1, as it is there. Per-latent details are left out.
"""

import json
import time
import uuid
from pathlib import Path

from jaxsae import __version__
from jaxsae.io import atomic

MISSING = -1.0


def write(results: dict, path: Path):
    """`results` is what eval.json says."""
    atomic.write_text(path, json.dumps(core(results), indent=1) + "\n")


def core(results: dict) -> dict:
    """SAEBench's JSON of what eval.json says."""
    number = lambda name: MISSING if results.get(name) is None else results[name]
    weights = results.get("dictionary", {})
    kl, kl_zero = number("kl"), number("kl_zero")
    tokens = results["eval_tokens"]
    text, dead = results.get("eval_text"), results.get("eval_dead_fraction")
    metrics = {
        "model_behavior_preservation": {
            "kl_div_score": (kl_zero - kl) / kl_zero if kl_zero > 0 else MISSING,
            "kl_div_with_ablation": kl_zero,
            "kl_div_with_sae": kl,
        },
        "model_performance_preservation": {
            "ce_loss_score": number("ce_recovered"),
            "ce_loss_with_ablation": number("ce_zero"),
            "ce_loss_with_sae": number("ce_substituted"),
            "ce_loss_without_sae": number("ce_original"),
        },
        "reconstruction_quality": {
            "explained_variance": number("explained_variance"),
            "explained_variance_legacy": number("explained_variance_per_token"),
            "mse": MISSING,
            "cossim": number("cosine"),
        },
        "shrinkage": {
            "l2_norm_in": MISSING,
            "l2_norm_out": MISSING,
            "l2_ratio": number("l2_ratio"),
            "relative_reconstruction_bias": number("relative_reconstruction_bias"),
        },
        "sparsity": {"l0": number("l0"), "l1": MISSING},
        "token_stats": {"total_tokens_eval_reconstruction": tokens, "total_tokens_eval_sparsity_variance": tokens},
        "misc_metrics": {
            "freq_over_1_percent": number("freq_over_1_percent"),
            "freq_over_10_percent": number("freq_over_10_percent"),
            "normalized_freq_over_1_percent": number("normalized_freq_over_1_percent"),
            "normalized_freq_over_10_percent": number("normalized_freq_over_10_percent"),
            "average_max_encoder_cosine_sim": weights.get("max_encoder_cosine", {}).get("mean", MISSING),
            "average_max_decoder_cosine_sim": weights.get("max_cosine", {}).get("mean", MISSING),
            "frac_alive": MISSING if dead is None else 1 - dead,
        },
    }
    return {
        "eval_type_id": "core",
        "eval_config": {"dataset": text if isinstance(text, str) else " ".join(text or ())},
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": [],
        "sae_bench_commit_hash": "",
        "sae_lens_id": "",
        "sae_lens_release_id": f"jaxsae {__version__}",
        "sae_lens_version": "",
        "sae_cfg_dict": {},
        "eval_result_unstructured": None,
    }
