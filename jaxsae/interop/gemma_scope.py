"""Gemma Scope: `params.npz` of the first, `params.safetensors` of the second (whose names are in lower case).

    u = W_enc^T x + b_enc;   xhat = jumprelu(u) W_dec + b_dec [+ x W_skip, of transcoders with an affine connection]

The first says nothing of its hook point: give `--hook`, and `--hook-out` if it is a transcoder. A folder called
`embedding` is one of embeddings that the language model multiplies by sqrt(d): as SAELens does, its W_enc is divided by
that, and W_dec multiplied. The second says `hf_hook_point_in` in config.json, or nothing.
"""

import re
from pathlib import Path

import numpy as np

from jaxsae.data import arrays as files
from jaxsae.errors import BadInput
from jaxsae.interop import reading, writing
from jaxsae.interop.interface import Format, Given
from jaxsae.io import safetensors_rows
from jaxsae.sae import fold
from jaxsae.sae.types import SAE, Spec

FIRST, SECOND, CONFIG = "params.npz", "params.safetensors", "config.json"
ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def recognises(path: Path) -> Path | None:
    files = (path,) if path.name in (FIRST, SECOND) else (path / FIRST, path / SECOND)
    return next((file for file in files if file.is_file()), None)


def read(file: Path, given: Given) -> tuple[SAE, dict]:
    config = reading.document(file.parent / CONFIG) if (file.parent / CONFIG).is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise BadInput(f"{file.parent / CONFIG} says architecture {config['architecture']!r}: jaxsae reads jump_relu")
    tensors = _first(file) if file.name == FIRST else safetensors_rows.mapped(file)
    tensors = {re.sub("^w_", "W_", name): a for name, a in tensors.items()}
    W_enc, b_enc, W_dec, b_dec, threshold, W_skip = reading.take(tensors, ARRAYS, file, ("affine_skip_connection",))
    if W_dec.ndim == 3:
        raise BadInput(f"{file} is a cross-layer transcoder, which jaxsae does not compute")
    places = given.places(*_hooks(config), config.get("model_name"), file)
    transcoder = places["hook_out"] is not None or W_skip is not None or W_enc.shape[0] != W_dec.shape[1]
    spec = Spec("jumprelu", 1, "none", "free", False)
    sae = reading.made(spec, file, W_enc.T, b_enc, W_dec, b_dec, {"threshold": threshold}, transcoder, W_skip)
    is_embedding = "embedding" in file.absolute().parts
    # The published formula is asked for by 1.
    scale = given.scale(is_embedding, None if given.input_scale else sae.d**-0.5, file)
    if scale != 1:
        # b_dec stays as it is, as in SAELens.
        sae = fold.input_scale(reading.in_float32(sae), np.float32(scale)).replace(b_dec=sae.b_dec)
    return sae, reading.about(sae, "gemma_scope", places, source=config)


def _first(file: Path) -> dict[str, np.ndarray]:
    tensors = dict(files.read(file))
    scale = tensors.pop("scaling_factor", np.ones(()))
    if not (scale == 1).all():
        raise BadInput(f"{file} has a scaling_factor other than 1, which jaxsae does not know in this format")
    return tensors


def _hooks(config: dict) -> tuple[str | None, str | None]:
    """The hook points of Hugging Face's modules that have a name here; None for others."""
    return _hook(config.get("hf_hook_point_in")), _hook(config.get("hf_hook_point_out"))


def _hook(module: str | None) -> str | None:
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", str(module))
    names = {"output": "hook_resid_post", "self_attn.o_proj.input": "attn.hook_z"}
    names |= {"pre_feedforward_layernorm.output": "mlp.hook_in", "post_feedforward_layernorm.output": "hook_mlp_out"}
    return f"blocks.{found[1]}.{names[found[2]]}" if found and found[2] in names else None


def write(sae: SAE, about: dict, folder: Path) -> list[str]:
    """Writes `params.npz`."""
    if sae.spec.normalise != "none" or sae.W_skip is not None:
        raise BadInput(
            f"Gemma Scope has neither normalisation nor skip connections, and this has {sae.spec.normalise}"
            f"{'' if sae.W_skip is None else ' and W_skip'}"
        )
    sae, notes = writing.folded(sae, fold.as_jumprelu, fold.decoder_as_used, fold.input_bias)
    arrays = (sae.W_enc.T, sae.b_enc, sae.W_dec, sae.b_dec, writing.own_arrays(sae)["threshold"])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / FIRST, **{name: np.asarray(a, order="C") for name, a in zip(ARRAYS, arrays)})
    return notes


FORMAT = Format(recognises, read, write, (FIRST, SECOND, CONFIG))
