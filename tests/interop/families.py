"""Autoencoders of every family and convention with random numbers: what is written for other libraries, and read."""

from dataclasses import fields

import numpy as np

from jaxsae.sae.types import SAE, Spec

D, N, K, ROWS = 24, 96, 5, 64
ABOUT = {"hook": "blocks.0.hook_resid_post", "hook_out": None, "lm": "gpt2", "context": 128}
PAIR = ABOUT | {"hook": "blocks.0.hook_resid_mid", "hook_out": "blocks.0.hook_mlp_out"}


def activations() -> np.ndarray:
    """[ROWS, D] with a mean of their own and norms over a wide range."""
    random = np.random.default_rng(1)
    x = random.normal(size=(ROWS, D)) * np.geomspace(3, 0.3, D) + random.normal(size=D)
    return (x * np.geomspace(0.4, 4, ROWS)[:, None]).astype(np.float32)


def random_sae(activation: str, normalise="none", subtract=True, decoder="free", seed=0, transcoder=False, **changes):
    """An autoencoder of NumPy arrays whose decoder rows have many norms."""
    random = np.random.default_rng(seed)
    normal = lambda *shape, scale=1.0: (scale * random.normal(size=shape)).astype(np.float32)
    rows = np.exp(normal(N, 1, scale=0.5))
    W_dec, extra = normal(N, D, scale=0.2) * rows, {}
    if activation == "jumprelu":
        extra = {"log_threshold": normal(N, scale=0.3)}
    elif activation == "batch_topk":
        extra = {"threshold": np.full(N, 1.5, np.float32)}
    elif activation == "gated":
        extra = {"r_mag": normal(N, scale=0.3), "b_mag": normal(N, scale=0.3)}
    k = 4 if activation == "groupmax" else K
    spec = Spec(activation, k, normalise, decoder, subtract and not transcoder)
    b_in = np.zeros(D, np.float32) if transcoder else None
    sae = SAE(normal(N, D, scale=0.3), normal(N, scale=0.5), W_dec, normal(D), spec, extra, b_in)
    return sae.replace(**changes)


def skip() -> dict:
    """W_skip, where this version has skip connections."""
    has = "W_skip" in {f.name for f in fields(SAE)}
    return {"W_skip": np.random.default_rng(9).normal(size=(D, D)).astype(np.float32)} if has else {}


def everything() -> dict[str, tuple[SAE, dict]]:
    """{name: (autoencoder, about)}."""
    plain = ("relu", "topk", "multi_topk", "jumprelu", "batch_topk", "gated", "prolu_relu", "groupmax")
    cases = {name: random_sae(name) for name in (*plain, "topk_without_relu")}
    cases |= {f"{name}, no b_dec": random_sae(name, subtract=False) for name in ("relu", "topk", "jumprelu", "gated")}
    cases |= {f"topk, {norm}": random_sae("topk", norm) for norm in ("ln_std", "norm", "unit_norm")}
    cases |= {"relu, normalised rows": random_sae("relu", decoder="normalised")}
    cases |= {"topk, normalised rows": random_sae("topk", decoder="normalised")}
    cases |= {"jumprelu, unit_norm": random_sae("jumprelu", "unit_norm")}
    out = {name: (sae, ABOUT) for name, sae in cases.items()}
    kinds = ("relu", "jumprelu", "topk", "topk_without_relu")
    pairs = {f"transcoder, {name}": random_sae(name, transcoder=True) for name in kinds}
    if skip():
        pairs |= {f"skip transcoder, {name}": random_sae(name, transcoder=True, **skip()) for name in kinds}
    return out | {name: (sae, PAIR) for name, sae in pairs.items()}
