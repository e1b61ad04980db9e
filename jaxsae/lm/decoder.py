"""One block for the families of Llama, Mistral, Qwen and Gemma: RMSNorm, rotary attention, a gated MLP.

Two sublayers a block: attention (resid_pre to resid_mid) and the MLP (resid_mid to resid_post). What families and their
config.json switch are fields of the config. B sequences, T tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxsae.lm import blocks, layers, rotary_attention
from jaxsae.lm import tensors as tables
from jaxsae.lm.architecture import Architecture
from jaxsae.lm.fold import centre
from jaxsae.lm.hooks import Hook
from jaxsae.lm.layers import ACTIVATIONS, dense, rms_norm
from jaxsae.lm.rotary_attention import Attention
from jaxsae.precision import Precision, matmul


@dataclass(frozen=True)
class DecoderConfig:
    architecture: str
    vocab_size: int
    n_ctx: int
    d_model: int
    n_layer: int
    n_inner: int
    attention: Attention
    activation: str
    norm_eps: float
    # Gains are stored less this.
    gain_offset: float = 0.0
    # What attention and the MLP write is normalised before it is added to the stream.
    post_norms: bool = False
    mlp_bias: bool = False
    # The embedding is multiplied by the square root of D.
    scaled_embedding: bool = False
    # Logits are soft-capped at it.
    logit_cap: float | None = None
    # Tied: the unembedding is the transposed token embedding.
    tied: bool = False
    precision: Precision = "float32"


def table(config: DecoderConfig) -> tables.Table:
    """What the files hold, without `model.`."""
    c, a, d = config, config.attention, config.d_model
    norm = lambda name, path, width=d: tables.norm(name, path, width, {"weight": "gain"})
    rows = {"embed_tokens.weight": (("embed", "embedding"), (c.vocab_size, d))} | norm("norm", ("norm",))
    if not c.tied:
        rows |= tables.dense("lm_head", ("unembed",), d, c.vocab_size, False)
    # The same name means another norm in a block of four.
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    if c.post_norms:
        norms |= {"post_attention_layernorm": "attn_post_norm", "pre_feedforward_layernorm": "mlp_norm"}
        norms["post_feedforward_layernorm"] = "mlp_post_norm"
    for layer in range(c.n_layer):
        theirs, ours = f"layers.{layer}", f"h_{layer}"
        for name, path in norms.items():
            rows |= norm(f"{theirs}.{name}", (ours, path))
        for part, count in (("q", a.n_head), ("k", a.n_kv_head), ("v", a.n_kv_head)):
            name, out = f"{theirs}.self_attn.{part}_proj", count * a.head_dim
            rows |= tables.dense(name, (ours, "attn", part), d, out, a.qkv_bias)
        rows |= tables.dense(f"{theirs}.self_attn.o_proj", (ours, "attn", "o"), a.width, d, a.o_bias)
        for part in "qk" if a.qk_norm else "":
            rows |= norm(f"{theirs}.self_attn.{part}_norm", (ours, "attn", f"{part}_norm"), a.head_dim)
        for part, sizes in (("gate", (d, c.n_inner)), ("up", (d, c.n_inner)), ("down", (c.n_inner, d))):
            rows |= tables.dense(f"{theirs}.mlp.{part}_proj", (ours, "mlp", part), *sizes, c.mlp_bias)
    return rows


def from_hf(tensors, config: DecoderConfig, shown="the model") -> dict:
    # Of a model without a head, saved on its own, names have no prefix.
    tensors = {name.removeprefix("model."): x for name, x in tensors.items()}
    if config.tied:
        tensors = tables.without_tied_head(tensors, "lm_head.weight", "embed_tokens.weight", shown)
    return tables.read(tensors, table(config), shown)


def embed(params, config: DecoderConfig, tokens, mask):
    del mask
    return layers.embed(params["embed"], tokens, config.scaled_embedding)


def sublayer(params, config: DecoderConfig, x, i: int, mask, tap):
    layer, name = i // 2, "mlp" if i % 2 else "attn"
    p, at = params[f"h_{layer}"], lambda kind: Hook(layer, kind)
    read = _norm(config, p[f"{name}_norm"], x)
    if name == "attn":
        heads = rotary_attention.heads(p["attn"], config.attention, read, layer, mask, config.precision)
        written = dense(p["attn"]["o"], tap(at("attn.hook_z"), heads), config.precision)
    else:
        read = tap(at("mlp.hook_in"), read)
        gate, up = (dense(p["mlp"][part], read, config.precision) for part in ("gate", "up"))
        neurons = tap(at("mlp.hook_post"), ACTIVATIONS[config.activation](gate) * up)
        written = dense(p["mlp"]["down"], neurons, config.precision)
    if config.post_norms:
        written = _norm(config, p[f"{name}_post_norm"], written)
    return x + tap(at(f"hook_{name}_out"), written)


def _norm(config: DecoderConfig, p, x):
    return rms_norm(p, x, config.norm_eps, config.gain_offset)


def final_norm(params, config: DecoderConfig, x):
    return _norm(config, params["norm"], x)


def unembed(params, config: DecoderConfig, x):
    kernel = params["embed"]["embedding"].T if config.tied else params["unembed"]["kernel"]
    return matmul(x, kernel, config.precision)


def width(config: DecoderConfig, hook: Hook) -> int:
    return {"attn.hook_z": config.attention.width, "mlp.hook_post": config.n_inner}.get(hook.kind, config.d_model)


def flops(config: DecoderConfig) -> tuple[int, ...]:
    d = config.d_model
    block = 2 * rotary_attention.weights(config.attention, d), 6 * d * config.n_inner
    return block * config.n_layer + (2 * d * config.vocab_size,)


def fold(params, config: DecoderConfig):
    """Gains go into the matrices that read the norms, biases of values into that of the output matrix; the unembedding
    is centred if no cap follows it. Norms of what is written, of queries and of keys stay.
    """
    kernel = params["embed"]["embedding"].T if config.tied else params["unembed"]["kernel"]
    kernel = _scaled(config, params["norm"], {"kernel": kernel})["kernel"]
    processed = {
        "embed": params["embed"],
        "norm": _plain(config, params["norm"]),
        "unembed": {"kernel": kernel if config.logit_cap else centre(kernel)},
    }
    a = config.attention
    for name in (f"h_{layer}" for layer in range(config.n_layer)):
        p = params[name]
        attn = p["attn"] | {part: _scaled(config, p["attn_norm"], p["attn"][part]) for part in "qkv"}
        if a.qkv_bias:
            written = matmul(rotary_attention.constant_output(attn, a), attn["o"]["kernel"])
            attn["o"] = attn["o"] | {"bias": attn["o"].get("bias", 0) + written}
            attn["v"] = attn["v"] | {"bias": jnp.zeros_like(attn["v"]["bias"])}
        mlp = p["mlp"] | {part: _scaled(config, p["mlp_norm"], p["mlp"][part]) for part in ("gate", "up")}
        plain = {norm: _plain(config, p[norm]) for norm in ("attn_norm", "mlp_norm")}
        processed[name] = p | plain | {"attn": attn, "mlp": mlp}
    return processed, replace(config, tied=False, attention=replace(a, o_bias=a.o_bias or a.qkv_bias))


def _scaled(config: DecoderConfig, norm, layer) -> dict:
    """A dense layer that reads a norm, with the norm's gain in its kernel."""
    gain = norm["gain"].astype(jnp.promote_types(norm["gain"].dtype, jnp.float32)) + config.gain_offset
    return layer | {"kernel": gain[:, None] * layer["kernel"]}


def _plain(config: DecoderConfig, norm) -> dict:
    """A norm without gain."""
    return {"gain": jnp.full_like(norm["gain"], 1 - config.gain_offset)}


def architecture(read_config: Callable, from_hf: Callable = from_hf) -> Architecture:
    """A family with this block, from what reads its config.json and its files."""
    return Architecture(
        read_config=read_config,
        from_hf=from_hf,
        shapes=lambda config: tables.shapes(table(config)),
        cuts=lambda config: blocks.cuts(config.n_layer),
        inside=lambda config: blocks.inside(config.n_layer),
        width=width,
        embed=embed,
        sublayer=sublayer,
        final_norm=final_norm,
        unembed=unembed,
        cap=lambda config, logits: layers.soft_cap(logits, config.logit_cap),
        flops=flops,
        fold=fold,
    )
