"""What an autoencoder computes, in NumPy and float64: every family, as its formula says."""

import jax
import numpy as np

from jaxsae.sae.types import SAE

relu = lambda u: np.maximum(u, 0)


def outputs(sae: SAE, x) -> tuple[np.ndarray, np.ndarray]:
    """(latents [B, n], reconstructions [B, d_out]) of x [B, d_in]."""
    sae = jax.tree.map(lambda a: np.asarray(a, np.float64), sae)
    x, mean, undone = _normalised(np.asarray(x, np.float64), sae.spec.normalise)
    b = sae.b_dec * sae.spec.subtract_b_dec if sae.b_in is None else sae.b_in
    u = (x - b) @ sae.W_enc.T + sae.b_enc
    z = ACTIVATIONS[sae.spec.activation](u, sae)
    norms = np.linalg.norm(sae.W_dec, axis=1, keepdims=True) if sae.spec.decoder == "normalised" else 1
    xhat = z @ (sae.W_dec / norms) + sae.b_dec
    if getattr(sae, "W_skip", None) is not None:
        xhat = xhat + x @ sae.W_skip
    if getattr(sae, "scale_out", None) is not None:
        return z, xhat * sae.scale_out
    return z, xhat * undone + mean


def _normalised(x, kind: str):
    """(normalised x, mean, what the output is multiplied by)."""
    if kind == "none":
        return x, 0, 1
    if kind == "norm":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
        return x / scale, 0, scale
    mean = x.mean(1, keepdims=True)
    x = x - mean
    if kind == "unit_norm":
        scale = np.linalg.norm(x, axis=1, keepdims=True)
        return x / scale, mean, scale
    std = x.std(1, keepdims=True, ddof=1)
    return x / (std + 1e-5), mean, std


def _largest(u, k: int):
    return u >= -np.sort(-u, 1)[:, k - 1 : k]


def _groupmax(u, sae):
    groups = u.reshape(len(u), sae.spec.k, -1)
    return np.where(groups == groups.max(2, keepdims=True), relu(groups), 0).reshape(u.shape)


def _jumprelu(u, sae):
    theta = sae.extra["threshold"] if "threshold" in sae.extra else np.exp(sae.extra["log_threshold"])
    return np.where(u > theta, relu(u), 0)


def _gated(u, sae):
    return np.where(u > 0, relu(np.exp(sae.extra["r_mag"]) * (u - sae.b_enc) + sae.extra["b_mag"]), 0)


def _prolu(u, sae):
    m = u - sae.b_enc
    return np.where((m > 0) & (u > 0), m, 0)


def _topk(u, sae):
    return np.where(_largest(u, sae.spec.k), relu(u), 0)


ACTIVATIONS = {
    "relu": lambda u, sae: relu(u),
    "topk": _topk,
    "multi_topk": _topk,
    "topk_without_relu": lambda u, sae: np.where(_largest(u, sae.spec.k), u, 0),
    "groupmax": _groupmax,
    "jumprelu": _jumprelu,
    "batch_topk": lambda u, sae: np.where(u > relu(sae.extra["threshold"]), relu(u), 0),
    "gated": _gated,
    "prolu_relu": _prolu,
    "prolu_ste": _prolu,
}
