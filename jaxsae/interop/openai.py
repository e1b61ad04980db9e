"""openai/sparse_autoencoder: one `.pt` file, a state dict that says its activation function.

    x' = LayerNorm(x) if TopK, else x;   u = W_enc (x' - pre_bias) + latent_bias
    xhat = LayerNorm^-1(act(u) W_dec + pre_bias)

LayerNorm divides by the unbiased standard deviation plus 1e-5, and is undone without the 1e-5 (ln_std). Whether there
is one is not in the file: the library's own loader takes it from the activation function, so `--sae.normalise` need be
given only if it was otherwise. TopK has ReLU after it, or nothing (postact_fn Identity).
"""

from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.interop import reading
from jaxsae.interop.interface import Format, Given
from jaxsae.io import torch_files
from jaxsae.sae.types import SAE, Spec

ARRAYS = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
# Statistics of training, and what newer versions of the library write beside `activation_state_dict`.
STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
SAID = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
FAMILIES = {("ReLU", None): "relu", ("TopK", "ReLU"): "topk", ("TopK", "Identity"): "topk_without_relu"}


def recognises(path: Path) -> Path | None:
    file = reading.only_file(path, "*.pt")
    return file if file is not None and {"pre_bias", "latent_bias"} <= reading.keys(file) else None


def read(file: Path, given: Given) -> tuple[SAE, dict]:
    state = torch_files.load(file)
    W_enc, b_enc, W_dec, b_dec, *_ = reading.take(state, ARRAYS, file, (*STATISTICS, *SAID))
    own = state.get("activation_state_dict") or {}
    kind = state.get("activation"), own.get("postact_fn")
    if kind not in FAMILIES:
        raise BadInput(f"{file} has activation {kind[0]!r} with postact_fn {kind[1]!r}, which jaxsae does not know")
    is_topk = kind[0] == "TopK"
    k = given.resolve("k", reading.whole(own.get("k"), "k", file), file) if is_topk else 1
    spec = Spec(FAMILIES[kind], k, given.normalise or ("ln_std" if is_topk else "none"), "free", True)
    sae = reading.made(spec, file, W_enc, b_enc, W_dec.T, b_dec)
    return sae, reading.about(sae, "openai", given.places(file=file))


FORMAT = Format(recognises, read)
