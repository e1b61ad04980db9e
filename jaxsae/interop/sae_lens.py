"""SAELens: `cfg.json` and `sae_weights.safetensors`, as version 6 writes them (for inference, or in training), and 5.

    x' = norm(x);   u = W_enc^T (x' - s b_dec) + b_enc;   xhat = norm^-1(act(u) W_dec + b_dec)

s is `apply_b_dec_to_input`. If `rescale_acts_by_decoder_norm`, u is multiplied by the norms of W_dec's rows, and
latents are divided by them before they decode; in files for inference rows have norm 1 already. BatchTopK is written as
JumpReLU with one threshold; a file of its training has `topk_threshold`, and is read as what it is outside training.

normalize_activations: layer_norm is ln_std here, constant_norm_rescale is norm. Of expected_average_only_in the factor
is not in the file: SAELens itself then scales nothing, and here it must be given (`--sae.input-scale`).
"""

from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.interop import reading, writing
from jaxsae.interop.interface import Format, Given
from jaxsae.io import safetensors_rows
from jaxsae.sae import fold
from jaxsae.sae.types import SAE, Spec

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
# What was written under these names before version 6, or in training, is the architecture on the right.
ARCHITECTURES = {
    "standard": "relu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "topk": "topk",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
BIAS = {"gated": "b_gate"}
OWN = {"gated": ("r_mag", "b_mag"), "jumprelu": ("threshold",)}
NORMALISE = {
    "none": "none",
    "layer_norm": "ln_std",
    "constant_norm_rescale": "norm",
    "expected_average_only_in": "none",
}


def recognises(path: Path) -> Path | None:
    folder = path.parent if path.name == WEIGHTS else path
    return folder if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file() else None


def read(folder: Path, given: Given) -> tuple[SAE, dict]:
    file, config = folder / WEIGHTS, _current(reading.document(folder / CONFIG), folder / CONFIG)
    facts, architecture, norm = config["metadata"], config["architecture"], config["normalize_activations"]
    family, is_training = ARCHITECTURES[architecture], architecture.endswith("batchtopk")
    is_transcoder = "transcoder" in architecture
    own = ("topk_threshold",) if is_training else OWN.get(family, ())
    skip = ("W_skip",) if "skip" in architecture else ()
    names = ("W_enc", BIAS.get(family, "b_enc"), "W_dec", "b_dec", *own, *skip)
    arrays = dict(zip(names, reading.take(_without_ones(safetensors_rows.mapped(file)), names, file)))
    W_enc, b_enc, W_dec, b_dec = (arrays[name] for name in names[:4])
    if W_enc.shape != (config.get("d_in"), config.get("d_sae")):
        raise BadInput(
            f"{file} has W_enc of shape {list(W_enc.shape)}, and {CONFIG} says d_in {config.get('d_in')}, d_sae "
            f"{config.get('d_sae')}"
        )
    if is_transcoder and norm != "none":
        raise BadInput(f"{folder} is a transcoder with {norm}, which jaxsae does not compute")
    subtract = bool(config["apply_b_dec_to_input"]) and not is_transcoder
    widths = tuple(config.get("matryoshka_widths") or ())
    k = _k(config, family, given, folder)
    spec = Spec(family, k, NORMALISE[norm], "free", subtract, widths and tuple(sorted({*widths, len(b_enc)})))
    extra = {} if is_training else {name: arrays[name] for name in own}
    W_skip = arrays["W_skip"].T if skip else None
    sae = reading.made(spec, file, W_enc.T, b_enc, W_dec, b_dec, extra, is_transcoder, W_skip)
    scale = given.scale(norm == "expected_average_only_in", None, folder)
    sae = sae if scale == 1 else fold.input_scale(reading.in_float32(sae), np.float32(scale))
    is_rescaled = bool(config.get("rescale_acts_by_decoder_norm"))
    if is_rescaled and not fold.are_one(norms := fold.row_norms(reading.in_float32(sae))):
        sae = fold.latent_scale(reading.in_float32(sae), norms)
    if is_training:
        # It is compared with latents as they are scaled in the end.
        threshold = arrays["topk_threshold"] / (scale if is_rescaled else 1)
        sae = sae.replace(extra={"threshold": np.full(b_enc.shape, threshold, np.float32)})
    lm = reading.hub_name(facts.get("model_name"))
    places = given.places(facts.get("hook_name"), facts.get("hook_name_out"), lm, folder)
    # Of TransformerLens's processing, activations depend on the centring alone.
    processed = bool((facts.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    known = {"context": facts.get("context_size"), "bos": facts.get("prepend_bos"), "process_weights": processed}
    return sae, reading.about(sae, "sae_lens", places, **known, source=config)


def _current(config: dict, file: Path) -> dict:
    """A configuration of any version as version 6 has it. Raises BadInput for what is not known."""
    if not isinstance(config.get("metadata"), dict):
        config = _of_version_6(config, file)
    config = {"reshape_activations": "none", "normalize_activations": "none"} | config
    allowed = {"architecture": ARCHITECTURES, "reshape_activations": ("none", "hook_z")}
    for name, values in (allowed | {"normalize_activations": NORMALISE}).items():
        if config.get(name) not in values:
            raise BadInput(f"{file} says {name} {config.get(name)!r}: jaxsae reads {', '.join(values)}")
    return config


def _of_version_6(old: dict, file: Path) -> dict:
    """A configuration from before version 6: everything lay on one level, and TopK was an activation function."""
    names = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    old = {names.get(name, name): value for name, value in old.items()}
    new = {"architecture": "standard", "apply_b_dec_to_input": True} | old | {"metadata": old}
    function = old.get("activation_fn", "relu")
    if function not in ("relu", "topk") or old.get("finetuning_scaling_factor"):
        raise BadInput(
            f"{file} says activation function {function!r}, finetuning_scaling_factor "
            f"{old.get('finetuning_scaling_factor')}: jaxsae reads relu and topk without such a factor"
        )
    if function == "topk":
        new |= {"architecture": "topk", "k": (old.get("activation_fn_kwargs") or {}).get("k")}
    # It was a flag.
    norms = {"True": "expected_average_only_in", "False": "none", "None": "none"}
    norm = old.get("normalize_activations")
    return new | {"normalize_activations": norms.get(str(norm), norm)}


def _without_ones(tensors: dict) -> dict:
    """Without the scaling factor of ones that some versions wrote."""
    scale = tensors.get("scaling_factor")
    return {name: a for name, a in tensors.items() if name != "scaling_factor" or not (np.asarray(scale) == 1).all()}


def _k(config: dict, family: str, given: Given, folder: Path) -> int:
    details = config["metadata"].get("training_architecture_details") or {}
    said = config.get("k", details.get("k"))
    said = None if said is None else reading.whole(said, "k", folder)
    # Of what is not chosen by k, it is only what training asked for.
    return given.resolve("k", said, folder) if family == "topk" else said or 1


# The architecture that each family is written as: of an autoencoder, and of a transcoder.
WRITTEN = {"relu": ("standard", "transcoder"), "topk": ("topk", None), "multi_topk": ("topk", None)}
WRITTEN |= {"gated": ("gated", None), "jumprelu": ("jumprelu", "jumprelu_transcoder")}


def write(sae: SAE, about: dict, folder: Path) -> list[str]:
    transcoder, skip = sae.b_in is not None, sae.W_skip
    changes = [fold.decoder_as_used, *([fold.input_bias] if transcoder else [])]
    if sae.spec.activation in ("batch_topk", "prolu_relu", "prolu_ste"):
        changes.insert(0, fold.as_jumprelu)
    sae, notes = writing.folded(sae, *changes)
    norms = {ours: name for name, ours in NORMALISE.items() if name != "expected_average_only_in"}
    architecture = WRITTEN.get(sae.spec.activation, (None, None))[transcoder]
    kind = "transcoder" if transcoder else "autoencoder" if skip is None else "autoencoder with a skip connection"
    impossible = sae.spec.normalise != "none" if transcoder else skip is not None
    if architecture is None or sae.spec.normalise not in norms or impossible:
        raise BadInput(
            f"SAELens has no {kind} with {sae.spec.activation} and {sae.spec.normalise} normalisation: it has "
            f"{', '.join(WRITTEN)} with {', '.join(norms)} (transcoders: relu and jumprelu with none)"
        )
    config = {
        "architecture": architecture if skip is None else architecture.replace("transcoder", "skip_transcoder"),
        "d_in": sae.d,
        "d_sae": sae.n,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.spec.subtract_b_dec,
        "normalize_activations": norms[sae.spec.normalise],
        "reshape_activations": "hook_z" if str(about.get("hook")).endswith("hook_z") else "none",
    }
    config |= {"k": sae.spec.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    config |= {"d_out": sae.W_dec.shape[1]} if transcoder else {}
    names = ("W_enc", BIAS.get(sae.spec.activation, "b_enc"), "W_dec", "b_dec")
    arrays = dict(zip(names, (sae.W_enc.T, sae.b_enc, sae.W_dec, sae.b_dec))) | writing.own_arrays(sae)
    writing.safetensors(folder / WEIGHTS, arrays | ({} if skip is None else {"W_skip": skip.T}))
    writing.document(folder / CONFIG, config | {"metadata": _metadata(about)})
    return notes


def _metadata(about: dict) -> dict:
    """What SAELens and those who read its files look for."""
    names = {"model_name": "lm", "hook_name": "hook", "hook_name_out": "hook_out", "context_size": "context"}
    facts = {name: about[ours] for name, ours in names.items() if about.get(ours) is not None}
    # The version whose layout this is: without it, it would be read as one from before version 6.
    facts |= {"sae_lens_version": "6.54.12", "sae_lens_training_version": None, "hook_head_index": None}
    processing = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed"), True)
    facts |= {"model_from_pretrained_kwargs": processing if about.get("process_weights") else {}}
    return facts | {"prepend_bos": bool(about.get("bos")), "seqpos_slice": [None]}


FORMAT = Format(recognises, read, write, (WEIGHTS, CONFIG))
