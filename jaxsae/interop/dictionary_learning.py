"""dictionary_learning: `ae.pt`, a state dict, and `config.json`. The class follows from the names of the arrays.

    u = W_enc (x - s b) + b_enc;   xhat = act(u) W_dec + b

AutoEncoder           ReLU, s = 1. Its loader scales the decoder's rows to norm 1, and so the latents, by default
AutoEncoderNew        ReLU, s = 0. Files of its trainer say AutoEncoder, and its own loader fails on them
GatedAutoEncoder      gated, s = 1
JumpReluAutoEncoder   JumpReLU; s is a flag of the constructor that is not saved, and 0 in its own loader
AutoEncoderTopK       TopK, s = 1; its `threshold` is used only if asked for
BatchTopKSAE, MatryoshkaBatchTopKSAE
                      the scalar `threshold` by default, s = 1: JumpReLU with one threshold
"""

import re
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.interop import reading, writing
from jaxsae.interop.interface import Format, Given
from jaxsae.io import torch_files
from jaxsae.sae import fold
from jaxsae.sae.types import SAE, Spec

WEIGHTS, CONFIG = "ae.pt", "config.json"
LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
# The arrays of each class. The first four are W_enc, b_enc, W_dec and b_dec.
CLASSES = {
    "AutoEncoder": (*LINEAR, "bias"),
    "AutoEncoderNew": (*LINEAR, "decoder.bias"),
    "GatedAutoEncoder": ("encoder.weight", "gate_bias", "decoder.weight", "decoder_bias", "r_mag", "mag_bias"),
    "JumpReluAutoEncoder": PLAIN,
    "AutoEncoderTopK": (*LINEAR, "b_dec", "k", "threshold"),
    "BatchTopKSAE": (*LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": (*PLAIN, "k", "group_sizes"),
}
LINEAR_CLASSES = [name for name, arrays in CLASSES.items() if arrays[0] == "encoder.weight"]
FAMILIES = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated", "AutoEncoderTopK": "topk"}


def recognises(path: Path) -> Path | None:
    folder = path.parent if path.name == WEIGHTS else path
    return folder if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file() else None


def read(folder: Path, given: Given) -> tuple[SAE, dict]:
    file, config = folder / WEIGHTS, reading.document(folder / CONFIG)
    trainer = config.get("trainer")
    state = torch_files.load(file)
    if not isinstance(trainer, dict) or not isinstance(state, dict):
        raise BadInput(f"{folder} is not of dictionary_learning: {CONFIG} says no trainer, or {WEIGHTS} is no dict")
    kind = _class(state, trainer.get("dict_class"), file)
    W_enc, b_enc, W_dec, b_dec, *own = reading.take(state, CLASSES[kind], file)
    own = dict(zip(CLASSES[kind][4:], own))
    # Weights of linear layers are [out, in].
    W_enc, W_dec = (W_enc, W_dec.T) if kind in LINEAR_CLASSES else (W_enc.T, W_dec)
    # k of families other than TopK is only what training asked for.
    family, k = FAMILIES.get(kind, "jumprelu"), reading.whole(own.get("k", trainer.get("k", 1)), "k", file)
    prefixes = tuple(int(m) for m in np.cumsum(own.get("group_sizes", ())))
    subtract = bool(given.subtract_b_dec) if kind == "JumpReluAutoEncoder" else kind != "AutoEncoderNew"
    spec = Spec(family, k, "none", "free", subtract, prefixes)
    sae = reading.made(spec, file, W_enc, b_enc, W_dec, b_dec, _extra(family, own, len(b_enc)))
    if kind == "AutoEncoder" and given.unit_norm_decoder is not False:
        single = reading.in_float32(sae)
        # As far from 1 as its own loader allows.
        sae = sae if np.allclose(fold.row_norms(single), 1) else fold.decoder_norms(single)
    places = given.places(_hook(config), None, trainer.get("lm_name"), folder)
    facts = {"dict_class": kind, "context": (config.get("buffer") or {}).get("ctx_len")}
    facts |= {"threshold": float(own["threshold"])} if kind == "AutoEncoderTopK" else {}
    return sae, reading.about(sae, "dictionary_learning", places, **facts, source=config)


def _extra(family: str, own: dict, n: int) -> dict:
    if family == "gated":
        return {"r_mag": own["r_mag"], "b_mag": own["mag_bias"]}
    return {"threshold": np.broadcast_to(own["threshold"], (n,))} if family == "jumprelu" else {}


def _class(state: dict, said: str | None, file: Path) -> str:
    """The class whose arrays these are; `said` decides between two with the same."""
    fitting = [name for name, arrays in CLASSES.items() if set(arrays) == set(state)]
    if len(fitting) == 1 or said in fitting:
        return said if said in fitting else fitting[0]
    raise BadInput(
        f"{file} holds {', '.join(map(str, state)) or 'nothing'}, and dict_class is {said!r}: jaxsae reads "
        f"{', '.join(CLASSES)}"
    )


def _hook(config: dict) -> str | None:
    """The hook point, if the submodule is called as the library's own scripts call the output of a layer, or as a hook
    point is."""
    name = str(config["trainer"].get("submodule_name"))
    if re.fullmatch(r"blocks\.\d+\.\w[\w.]*", name):
        return name
    found = re.fullmatch(r"resid_post_layer_(\d+)", name)
    is_output = (config.get("buffer") or {}).get("io", "out") == "out"
    return f"blocks.{found[1]}.hook_resid_post" if found and is_output else None


def write(sae: SAE, about: dict, folder: Path) -> list[str]:
    if sae.spec.normalise != "none" or sae.b_in is not None or sae.W_skip is not None:
        raise BadInput(
            "dictionary_learning has neither transcoders nor skip connections nor normalisation of tokens, and this is "
            f"{sae.spec.activation} with {sae.spec.normalise}{'' if sae.b_in is None else ', a transcoder'}"
        )
    kind = _written_as(sae)
    jump = [] if kind in FAMILIES else [fold.as_jumprelu]
    bias = fold.input_bias if kind in ("AutoEncoderNew", "JumpReluAutoEncoder") else fold.subtracted_bias
    sae, notes = writing.folded(sae, *jump, fold.decoder_as_used, bias)
    arrays = {name: np.asarray(a) for name, a in writing.own_arrays(sae).items()}
    arrays |= {"mag_bias": arrays.get("b_mag"), "k": np.asarray(sae.spec.k, np.int32)}
    arrays["group_sizes"] = np.diff((0, *sae.spec.prefixes))
    if "k" in CLASSES[kind]:
        # One for all latents; -1: none was found, and TopK asks for none.
        arrays["threshold"] = np.asarray(arrays.get("threshold", [about.get("threshold", -1)])[0], np.float32)
    weights = (sae.W_enc, sae.b_enc, sae.W_dec.T, sae.b_dec)
    weights = weights if kind in LINEAR_CLASSES else (sae.W_enc.T, sae.b_enc, sae.W_dec, sae.b_dec)
    state = dict(zip(CLASSES[kind], weights)) | {name: arrays[name] for name in CLASSES[kind][4:]}
    layer = re.match(r"blocks\.(\d+)\.", str(about.get("hook")))
    layer = int(layer[1]) if layer else None
    module = f"resid_post_layer_{layer}" if str(about.get("hook")).endswith("hook_resid_post") else about.get("hook")
    trainer = {"dict_class": kind, "activation_dim": sae.d, "dict_size": sae.n, "k": sae.spec.k, "layer": layer}
    trainer |= {"lm_name": about.get("lm"), "submodule_name": module}
    folder.mkdir(parents=True, exist_ok=True)
    torch_files.save(folder / WEIGHTS, state)
    buffer = {"d_submodule": sae.d, "io": "out", "ctx_len": about.get("context")}
    writing.document(folder / CONFIG, {"trainer": trainer, "buffer": buffer})
    return notes


def _written_as(sae: SAE) -> str:
    """The class that computes what `sae` does."""
    family = sae.spec.activation
    if family in ("topk", "multi_topk"):
        return "AutoEncoderTopK"
    if family == "gated":
        return "GatedAutoEncoder"
    if family == "relu":
        is_plain = sae.spec.subtract_b_dec and np.allclose(fold.row_norms(sae), 1)
        return "AutoEncoder" if is_plain else "AutoEncoderNew"
    threshold = writing.own_arrays(fold.as_jumprelu(sae))["threshold"]
    if (threshold == threshold[0]).all() and sae.spec.subtract_b_dec:
        return "MatryoshkaBatchTopKSAE" if sae.spec.prefixes else "BatchTopKSAE"
    return "JumpReluAutoEncoder"


FORMAT = Format(recognises, read, write, (WEIGHTS, CONFIG))
