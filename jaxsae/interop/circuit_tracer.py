"""circuit-tracer's transcoders of single layers: `layer_L.safetensors` for each, and one `config.yaml`.

    u = W_enc x + b_enc;   yhat = act(u) W_dec + b_dec [+ x W_skip]

act is JumpReLU with `activation_function.threshold` if the file has it, else what config.yaml says: `relu` (default),
or `topk` with `k`, which has no ReLU after it. The hook points are in config.yaml, without their layer.
"""

import re
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.interop import reading, writing
from jaxsae.interop.interface import Format, Given
from jaxsae.io import safetensors_rows
from jaxsae.sae import fold
from jaxsae.sae.types import SAE, Spec

NAME, CONFIG = re.compile(r"layer_(\d+)\.safetensors"), "config.yaml"
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")
THRESHOLD = "activation_function.threshold"


def recognises(path: Path) -> Path | None:
    file = reading.only_file(path, "layer_*.safetensors")
    return file if file is not None and NAME.fullmatch(file.name) and (file.parent / CONFIG).is_file() else None


def read(file: Path, given: Given) -> tuple[SAE, dict]:
    config, layer = reading.document(file.parent / CONFIG), NAME.fullmatch(file.name)[1]
    tensors = safetensors_rows.mapped(file)
    *weights, threshold, W_skip, k = reading.take(tensors, ARRAYS, file, (THRESHOLD, "W_skip", "k"))
    said = config.get("activation")
    if said not in (None, "relu", "topk", "jump_relu", "jumprelu"):
        raise BadInput(f"{file.parent / CONFIG} says activation {said!r}: jaxsae reads relu, topk and jumprelu")
    activation = {"topk": "topk_without_relu", "relu": "relu"}.get(said, "relu" if threshold is None else "jumprelu")
    if threshold is not None and (np.asarray(threshold, np.float32) < 0).any():
        raise BadInput(f"{file} has thresholds below 0, which let negative values pass: jaxsae does not compute that")
    k = config.get("k") if k is None else k
    k = given.resolve("k", None if k is None else reading.whole(k, "k", file), file) if said == "topk" else 1
    extra = {"threshold": threshold} if activation == "jumprelu" else {}
    skip = None if W_skip is None else W_skip.T
    sae = reading.made(Spec(activation, k, "none", "free", False), file, *weights, extra, True, skip)
    hooks = [config.get(f"feature_{side}_hook") for side in ("input", "output")]
    hooks = [hook and f"blocks.{layer}.{hook}" for hook in hooks]
    return sae, reading.about(
        sae, "circuit_tracer", given.places(*hooks, config.get("model_name"), file), source=config
    )


def write(sae: SAE, about: dict, folder: Path) -> list[str]:
    hooks = [re.fullmatch(r"blocks\.(\d+)\.(.+)", str(about.get(name))) for name in ("hook", "hook_out")]
    if None in hooks or hooks[0][1] != hooks[1][1]:
        raise BadInput(
            "circuit-tracer has transcoders of one layer: give --hook and --hook-out, such as blocks.3.hook_resid_mid "
            "and blocks.3.hook_mlp_out"
        )
    if sae.spec.normalise != "none" or sae.spec.activation in ("topk", "multi_topk", "gated", "groupmax"):
        raise BadInput(
            f"circuit-tracer has relu, JumpReLU and TopK without ReLU, not normalised, and this is "
            f"{sae.spec.activation} with {sae.spec.normalise}"
        )
    as_jumprelu = [] if sae.spec.activation in ("relu", "topk_without_relu") else [fold.as_jumprelu]
    sae, notes = writing.folded(sae, *as_jumprelu, fold.decoder_as_used, fold.input_bias)
    arrays = dict(zip(ARRAYS, (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)))
    arrays |= {f"activation_function.{name}": a for name, a in writing.own_arrays(sae).items()}
    skip = sae.W_skip
    arrays |= {} if skip is None else {"W_skip": skip.T}
    config = {"model_name": about.get("lm"), "model_kind": "transcoder_set", "scan": None}
    config |= {"feature_input_hook": hooks[0][2], "feature_output_hook": hooks[1][2]}
    config |= {"activation": "topk", "k": sae.spec.k} if sae.spec.activation == "topk_without_relu" else {}
    writing.safetensors(folder / f"layer_{hooks[0][1]}.safetensors", arrays)
    # JSON is YAML.
    writing.document(folder / CONFIG, config)
    return notes


FORMAT = Format(recognises, read, write, (CONFIG,))
