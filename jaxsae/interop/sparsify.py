"""EleutherAI/sparsify: a folder for each hook point, with `sae.safetensors` and `cfg.json`.

    u = relu(W_enc (x - b_dec) + b_enc), the k largest kept (or the largest of each of k groups of neighbours: groupmax)
    xhat = u W_dec + b_dec + x W_skip

A transcoder (`transcode`) reads x itself, and its output is another activation. `num_latents` 0 means d_in times
`expansion_factor`. The folder is called as a module of the language model: which hook point that is it does not say.
"""

from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.interop import reading, writing
from jaxsae.interop.interface import Format, Given
from jaxsae.io import safetensors_rows
from jaxsae.sae import fold
from jaxsae.sae.types import SAE, Spec

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
ARRAYS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
FAMILIES = {("topk", False): "topk", ("topk", True): "multi_topk", ("groupmax", False): "groupmax"}


def recognises(path: Path) -> Path | None:
    folder = path.parent if path.name == WEIGHTS else path
    return folder if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file() else None


def read(folder: Path, given: Given) -> tuple[SAE, dict]:
    file, config = folder / WEIGHTS, reading.document(folder / CONFIG)
    names = ("d_in", "k")
    said = zip(reading.need(config, names, folder / CONFIG), names)
    d, k = (reading.whole(value, name, folder / CONFIG) for value, name in said)
    kind = config.get("activation", "topk"), config.get("multi_topk", False)
    if kind not in FAMILIES:
        raise BadInput(f"{folder / CONFIG} says activation {kind[0]!r}, multi_topk {kind[1]}: jaxsae does not know it")
    W_enc, b_enc, W_dec, b_dec, W_skip = reading.take(safetensors_rows.mapped(file), ARRAYS, file, ("W_skip",))
    n = config.get("num_latents") or d * config.get("expansion_factor", 32)
    transcode, skip = bool(config.get("transcode")), bool(config.get("skip_connection"))
    if W_enc.shape != (n, d) or skip != (W_skip is not None):
        raise BadInput(
            f"{file} has an encoder of shape {list(W_enc.shape)}{'' if W_skip is None else ' and W_skip'}, and "
            f"{CONFIG} says [{n}, {d}], skip_connection {skip}"
        )
    spec = Spec(FAMILIES[kind], k, "none", "free", subtract_b_dec=not transcode)
    skip = None if W_skip is None else W_skip.T
    sae = reading.made(spec, file, W_enc, b_enc, W_dec, b_dec, transcoder=transcode, W_skip=skip)
    places = given.places(file=folder)
    return sae, reading.about(sae, "sparsify", places, module=folder.absolute().name, source=config)


def write(sae: SAE, about: dict, folder: Path) -> list[str]:
    names = {family: kind for kind, family in FAMILIES.items()}
    if sae.spec.activation not in names or sae.spec.normalise != "none":
        raise BadInput(
            f"sparsify has {', '.join(names)} without normalisation, and this is {sae.spec.activation} with "
            f"{sae.spec.normalise}"
        )
    transcode, skip = sae.b_in is not None, sae.W_skip
    sae, notes = writing.folded(sae, fold.decoder_as_used, fold.input_bias if transcode else fold.subtracted_bias)
    if sae.W_enc.shape[1] != sae.W_dec.shape[1]:
        raise BadInput(f"sparsify's transcoders have one width, and this one has {sae.d} and {sae.W_dec.shape[1]}")
    activation, multi = names[sae.spec.activation]
    config = {
        "activation": activation,
        "expansion_factor": 32,
        "normalize_decoder": bool(fold.are_one(fold.row_norms(sae))),
        "num_latents": sae.n,
        "k": sae.spec.k,
        "multi_topk": multi,
        "skip_connection": skip is not None,
        "transcode": transcode,
        "d_in": sae.d,
    }
    arrays = dict(zip(ARRAYS, (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)))
    arrays |= {} if skip is None else {"W_skip": skip.T}
    writing.safetensors(folder / WEIGHTS, arrays)
    writing.document(folder / CONFIG, config)
    return notes


FORMAT = Format(recognises, read, write, (WEIGHTS, CONFIG))
