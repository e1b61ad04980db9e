"""Llama Scope: `hyperparams.json` with `checkpoints/final.safetensors`; its R1 variant has `config.json` with
`sae_weights.safetensors`.

    u = W_enc (s x) + b_enc;   xhat = (u 1[u > theta]) W_dec + b_dec, divided by s        s = sqrt(d) / E||x||

s is folded into the weights. The first has one theta for all latents, in units of x, so s theta is compared with u (as
SAELens reads it); of the second exp(log_jumprelu_threshold) is. E||x|| is `dataset_average_activation_norm`; where the
file does not say it, s must be given: `--sae.input-scale`.
"""

from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.interop import reading
from jaxsae.interop.interface import Format, Given
from jaxsae.io import safetensors_rows
from jaxsae.sae import fold
from jaxsae.sae.types import SAE, Spec

ARRAYS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
FIRST = ("hyperparams.json", "checkpoints/final.safetensors")
R1 = ("config.json", "sae_weights.safetensors")


def recognises(path: Path) -> Path | None:
    folder = path.parent if path.name == R1[1] else path.parent.parent if path.name == "final.safetensors" else path
    return folder if any(all((folder / name).is_file() for name in names) for names in (FIRST, R1)) else None


def read(folder: Path, given: Given) -> tuple[SAE, dict]:
    is_first = (folder / FIRST[0]).is_file()
    config_file, file = (folder / name for name in (FIRST if is_first else R1))
    config, tensors = reading.document(config_file), safetensors_rows.mapped(file)
    d, hook = reading.need(config, ("d_model", "hook_point_in"), config_file)
    W_enc, b_enc, W_dec, b_dec, logs = _arrays(tensors, is_first, file)
    reading.check_axes(file, W_enc=W_enc, W_dec=W_dec)
    if W_enc.shape[1] != d:
        raise BadInput(f"{file} has an encoder of shape {list(W_enc.shape)}, and {config_file} says d_model {d}")
    norm = (config.get("dataset_average_activation_norm") or {}).get("in")
    scale = given.scale(True, None if norm is None else float(d) ** 0.5 / norm, folder)
    if is_first:
        (theta,) = reading.need(config, ("jump_relu_threshold",), config_file)
        threshold = np.full(b_enc.shape, theta * scale, np.float32)
    else:
        threshold = np.exp(np.asarray(logs, np.float32))
    spec = Spec("jumprelu", 1, "none", "free", False)
    hook_out = config.get("hook_point_out", hook)
    sae = reading.made(spec, file, W_enc, b_enc, W_dec.T, b_dec, {"threshold": threshold}, hook_out != hook)
    sae = fold.input_scale(reading.in_float32(sae), np.float32(scale))
    places = given.places(hook, hook_out if hook_out != hook else None, None, folder)
    return sae, reading.about(sae, "llama_scope", places, source=config)


def _arrays(tensors: dict, is_first: bool, file: Path) -> list:
    if is_first:
        return [*reading.take(tensors, ARRAYS, file), None]
    return reading.take(tensors, (*ARRAYS, "log_jumprelu_threshold"), file)


FORMAT = Format(recognises, read, files=(*FIRST, *R1))
