"""The same autoencoder in other numbers: exact transforms, each one line of algebra. d width, n latents.

With u = W_enc (x - b) + b_enc, values v(u), and xhat = v W_dec + b_dec, a constant that the input, the values or the
bias carry can be moved into the weights. They work on NumPy's arrays and on JAX's. What would not be exact is not here:
no per-token normalisation can be folded.
"""

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.sae.types import SAE

# A threshold above which everything positive is.
TINY = 1e-20
# Families whose choice of latents compares them with each other: it changes if latents are scaled differently.
COMPARING = ("topk", "multi_topk", "batch_topk", "topk_without_relu", "groupmax")


def input_scale(sae: SAE, scale: float) -> SAE:
    """The autoencoder of x that computes what `sae` computes of scale x, its output divided by `scale` again.

    W_enc scale, W_dec / scale, b_dec / scale. Raises BadInput if `sae` normalises tokens.
    """
    if sae.spec.normalise != "none":
        raise BadInput(f"{sae.spec.normalise} normalises each token by itself: no scale can be folded through it")
    b_in = None if sae.b_in is None else sae.b_in / scale
    return sae.replace(W_enc=sae.W_enc * scale, W_dec=sae.W_dec / scale, b_dec=sae.b_dec / scale, b_in=b_in)


def output_scale(sae: SAE) -> SAE:
    """The same transcoder with an output in the units of the language model: W_dec, b_dec and W_skip times its unit."""
    scale = sae.scale_out
    if scale is None:
        return sae
    b_in = sae.b_in
    if b_in is None:
        b_in = sae.b_dec if sae.spec.subtract_b_dec else sae.W_enc[0] * 0
    skip = {} if sae.W_skip is None else {"W_skip": sae.W_skip * scale}
    spec = sae.spec.replace(subtract_b_dec=False)
    return sae.replace(W_dec=sae.W_dec * scale, b_dec=sae.b_dec * scale, b_in=b_in, scale_out=None, spec=spec, **skip)


def latent_scale(sae: SAE, by) -> SAE:
    """The autoencoder whose latents and thresholds are `by` [n] > 0 times as large, and rows of W_dec as much shorter.

    Where latents are compared with each other (TopK), they are compared as scaled.
    """
    extra = {name: _scaled(name, a, by) for name, a in sae.extra.items()}
    rows = by[:, None]
    return sae.replace(W_enc=sae.W_enc * rows, b_enc=sae.b_enc * by, W_dec=sae.W_dec / rows, extra=extra)


def _scaled(name: str, a, by):
    if name == "log_threshold":
        return a + np.log(by) if isinstance(a, np.ndarray) else a + _jnp().log(by)
    return a if name == "r_mag" else a * by


def decoder_norms(sae: SAE) -> SAE:
    """The same reconstructions with rows of W_dec of norm 1; values become as much larger as rows were longer.

    Raises BadInput for families that compare latents with each other, unless all rows have norm 1 as it is.
    """
    norms = row_norms(sae)
    if are_one(norms):
        return sae
    if sae.spec.activation in COMPARING:
        raise BadInput(
            f"decoder rows of {sae.spec.activation} cannot be scaled to norm 1: it compares latents with each other, "
            "and would choose others"
        )
    sae = latent_scale(decoder_as_used(sae), norms)
    return sae.replace(spec=sae.spec.replace(decoder="unit_norm"))


def row_norms(sae: SAE):
    """Norms [n] of the decoder's rows as they are used; 1 for rows of zeros."""
    W = decoder_as_used(sae).W_dec
    norms = (W * W).sum(-1) ** 0.5
    return norms + (norms == 0)


def are_one(norms) -> bool:
    """Whether norms are 1 but for rounding."""
    return bool((abs(norms - 1) < 2e-6).all())


def decoder_as_used(sae: SAE) -> SAE:
    """The same with the rows of W_dec that it decodes with, if those of its kind are normalised where they are used."""
    if sae.spec.decoder == "normalised":
        norms = (sae.W_dec * sae.W_dec).sum(-1, keepdims=True) ** 0.5
        sae = sae.replace(W_dec=sae.W_dec / (norms + (norms == 0)), spec=sae.spec.replace(decoder="unit_norm"))
    return sae


def input_bias(sae: SAE) -> SAE:
    """The same with an encoder that sees x itself: W_enc b is taken off its bias (of a gated one off both)."""
    if not sae.spec.subtract_b_dec and (sae.b_in is None or not abs(sae.b_in).max() > 0):
        return sae
    if sae.spec.activation.startswith("prolu"):
        raise BadInput("ProLU's bias is not part of its values: write it as JumpReLU first (fold.as_jumprelu)")
    return _shifted(sae, -_product(sae.W_enc, sae.b_dec if sae.b_in is None else sae.b_in), False)


def subtracted_bias(sae: SAE) -> SAE:
    """The same with an encoder that sees x - b_dec: W_enc b_dec is put onto its bias (of a gated one onto both)."""
    sae = input_bias(sae) if sae.b_in is not None else sae
    return sae if sae.spec.subtract_b_dec else _shifted(sae, _product(sae.W_enc, sae.b_dec), True)


def _shifted(sae: SAE, shift, subtract: bool) -> SAE:
    extra = dict(sae.extra)
    if "b_mag" in extra:
        exp = np.exp if isinstance(extra["r_mag"], np.ndarray) else _jnp().exp
        extra["b_mag"] = extra["b_mag"] + exp(extra["r_mag"]) * shift
    b_in = None if sae.b_in is None else sae.b_in * 0
    spec = sae.spec.replace(subtract_b_dec=subtract)
    return sae.replace(b_enc=sae.b_enc + shift, extra=extra, b_in=None if subtract else b_in, spec=spec)


def log_thresholds(sae: SAE) -> SAE:
    """The same with the logarithms of JumpReLU's thresholds, which are what is trained; those up to 0 become tiny."""
    if sae.spec.activation != "jumprelu" or "threshold" not in sae.extra:
        return sae
    jnp = _jnp()
    return sae.replace(extra={"log_threshold": jnp.log(jnp.maximum(sae.extra["threshold"], TINY))})


def as_jumprelu(sae: SAE) -> SAE:
    """The same as JumpReLU, for ReLU (threshold 0), BatchTopK (the threshold that it has outside training) and ProLU
    (m where m > 0 and m > -b: no bias, and the threshold max(0, -b)). Raises BadInput for other families.
    """
    spec = sae.spec.replace(activation="jumprelu")
    name, b = sae.spec.activation, sae.b_enc
    if name == "jumprelu":
        return sae
    if name == "relu":
        return sae.replace(spec=spec, extra={"threshold": b * 0})
    if name == "batch_topk":
        threshold = sae.extra["threshold"]
        return sae.replace(spec=spec, extra={"threshold": threshold * (threshold > 0)})
    if name.startswith("prolu"):
        return sae.replace(spec=spec, b_enc=b * 0, extra={"threshold": -b * (b < 0)})
    raise BadInput(f"{name} cannot be written as JumpReLU: only relu, batch_topk and prolu are")


def _product(W, b):
    """W b [n], in double precision where that is there."""
    if isinstance(W, np.ndarray):
        return (W.astype(np.float64) @ np.asarray(b, np.float64)).astype(W.dtype)
    return _jnp().matmul(W, b, precision="highest")


def _jnp():
    import jax.numpy as jnp

    return jnp
