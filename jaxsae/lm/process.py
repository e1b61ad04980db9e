"""TransformerLens's weight processing, as a pure transform (Braun et al. 2024 trained on processed models).

Softmax outputs stay the same; the residual stream loses its mean over d at every hook point.
"""

from dataclasses import replace

import jax.numpy as jnp

from jaxsae.lm.model import LM
from jaxsae.precision import matmul


def process_weights(lm: LM) -> LM:
    """Fold every LayerNorm's gain and bias into what reads it, centre what writes to the residual stream and the
    unembedding, fold the value bias into attention's output bias. The result has an unembedding of its own.
    """
    c, p = lm.config, lm.params
    head = p["lm_head"] if not c.tied else {"kernel": p["wte"]["embedding"].T, "bias": jnp.zeros(c.vocab_size)}
    W_U, b_U = _read_through(p["ln_f"], head)
    params = {
        "wte": {"embedding": _centre(p["wte"]["embedding"])},
        "wpe": {"embedding": _centre(p["wpe"]["embedding"])},
        "ln_f": _plain(p["ln_f"]),
        "lm_head": {"kernel": _centre(W_U), "bias": _centre(b_U)},
    }
    for name in (f"h_{layer}" for layer in range(c.n_layer)):
        params[name] = _process_block(p[name], c.n_embd)
    return replace(lm, params=params, config=replace(c, tied=False))


def _process_block(p, d):
    W_qkv, b_qkv = _read_through(p["ln_1"], p["attn"]["c_attn"])
    W_in, b_in = _read_through(p["ln_2"], p["c_fc"])
    # A constant value vector passes attention unchanged, because its weights sum to one.
    W_O = p["attn"]["c_proj"]["kernel"]
    b_O = p["attn"]["c_proj"]["bias"] + matmul(b_qkv[2 * d :], W_O)
    b_qkv = b_qkv.at[2 * d :].set(0)
    return {
        "ln_1": _plain(p["ln_1"]),
        "attn": {
            "c_attn": {"kernel": W_qkv, "bias": b_qkv},
            "c_proj": {"kernel": _centre(W_O), "bias": _centre(b_O)},
        },
        "ln_2": _plain(p["ln_2"]),
        "c_fc": {"kernel": W_in, "bias": b_in},
        "c_proj": {"kernel": _centre(p["c_proj"]["kernel"]), "bias": _centre(p["c_proj"]["bias"])},
    }


def _read_through(norm, dense):
    """Kernel [d, m] and bias [m] of a layer that reads a LayerNorm, with gain, bias and centring folded in."""
    W, b = dense["kernel"], dense["bias"]
    b = b + matmul(norm["bias"], W)
    W = norm["scale"][:, None] * W
    return W - W.mean(0), b


def _centre(x):
    return x - x.mean(-1, keepdims=True)


def _plain(norm):
    """A LayerNorm without gain and bias."""
    return {"scale": jnp.ones_like(norm["scale"]), "bias": jnp.zeros_like(norm["bias"])}
