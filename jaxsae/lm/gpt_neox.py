"""GPT-NeoX and Pythia: attention and MLP beside each other on one stream, LayerNorm, partly rotated heads.

A block is one sublayer (resid_pre to resid_post), without `hook_resid_mid`; with `use_parallel_residual` false it is
two, as in GPT-2. In files the rows of queries, keys and values lie head by head. B sequences, T tokens, D width.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm import blocks, layers, rotary, rotary_attention
from jaxsae.lm import hf as files
from jaxsae.lm import tensors as tables
from jaxsae.lm.architecture import Architecture
from jaxsae.lm.decoder_config import refuse_others
from jaxsae.lm.fold import centre, plain, read_through
from jaxsae.lm.hooks import Hook
from jaxsae.lm.layers import ACTIVATIONS, dense, layer_norm
from jaxsae.lm.rotary_attention import Attention
from jaxsae.precision import Precision, matmul

# Entries of older files, some of which have them under two names.
ROTARY = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
ROTARY |= {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}


@dataclass(frozen=True)
class GPTNeoXConfig:
    vocab_size: int
    n_ctx: int
    d_model: int
    n_layer: int
    n_inner: int
    attention: Attention
    activation: str = "gelu"
    norm_eps: float = 1e-5
    parallel: bool = True
    # Tied: the unembedding is the transposed token embedding. Untied: a matrix of its own, and after `fold` a bias.
    tied: bool = False
    unembed_bias: bool = False
    precision: Precision = "float32"
    architecture: str = "gpt_neox"


def read_config(hf: dict, folder: Path, precision: Precision) -> GPTNeoXConfig:
    size = lambda name, default=None: files.size(hf, name, folder, default)
    refuse_others(hf, (), folder)
    d, heads = size("hidden_size"), size("num_attention_heads")
    if d % heads:
        raise BadInput(f"{folder}/config.json: hidden_size {d} is not a multiple of num_attention_heads {heads}")
    bias, head_dim = files.flag(hf, "attention_bias", True, folder), d // heads
    if size("head_dim", head_dim) != head_dim:
        raise BadInput(f"{folder}/config.json: head_dim {hf['head_dim']} is not hidden_size / num_attention_heads")
    attention = Attention(
        n_head=heads,
        n_kv_head=heads,
        head_dim=head_dim,
        rotary=rotary.read(hf, head_dim, folder, share=0.25, names=ROTARY),
        scale=head_dim**-0.5,
        qkv_bias=bias,
        o_bias=bias,
    )
    return GPTNeoXConfig(
        vocab_size=size("vocab_size"),
        n_ctx=size("max_position_embeddings"),
        d_model=d,
        n_layer=size("num_hidden_layers"),
        n_inner=size("intermediate_size"),
        attention=attention,
        activation=files.choice(hf, "hidden_act", "gelu", ACTIVATIONS, folder),
        norm_eps=files.positive(hf, "layer_norm_eps", 1e-5, folder),
        parallel=files.flag(hf, "use_parallel_residual", True, folder),
        tied=files.flag(hf, "tie_word_embeddings", False, folder),
        precision=precision,
    )


def table(config: GPTNeoXConfig) -> tables.Table:
    """What the files hold, without `gpt_neox.`, and with the rows of queries, keys and values apart."""
    c, a, d = config, config.attention, config.d_model
    norm = lambda name, path: tables.norm(name, path, d, {"weight": "scale", "bias": "bias"})
    rows = {"embed_in.weight": (("embed", "embedding"), (c.vocab_size, d))} | norm("final_layer_norm", ("norm",))
    if not c.tied:
        rows |= tables.dense("embed_out", ("unembed",), d, c.vocab_size, c.unembed_bias)
    for layer in range(c.n_layer):
        theirs, ours = f"layers.{layer}", f"h_{layer}"
        rows |= norm(f"{theirs}.input_layernorm", (ours, "attn_norm"))
        rows |= norm(f"{theirs}.post_attention_layernorm", (ours, "mlp_norm"))
        for part in "qkv":
            rows |= tables.dense(f"{theirs}.attention.{part}", (ours, "attn", part), d, d, a.qkv_bias)
        rows |= tables.dense(f"{theirs}.attention.dense", (ours, "attn", "o"), d, d, a.o_bias)
        rows |= tables.dense(f"{theirs}.mlp.dense_h_to_4h", (ours, "mlp", "up"), d, c.n_inner, True)
        rows |= tables.dense(f"{theirs}.mlp.dense_4h_to_h", (ours, "mlp", "down"), c.n_inner, d, True)
    return rows


def from_hf(tensors, config: GPTNeoXConfig, shown="the model") -> dict:
    # Newer files call the unembedding `lm_head`.
    heads = {"lm_head.weight": "embed_out.weight"}
    tensors = {heads.get(name, name).removeprefix("gpt_neox."): x for name, x in tensors.items()}
    if config.tied:
        tensors = tables.without_tied_head(tensors, "embed_out.weight", "embed_in.weight", shown)
    for layer in range(config.n_layer):
        for kind in ("weight", "bias") if config.attention.qkv_bias else ("weight",):
            _split(tensors, f"layers.{layer}.attention", kind, config, shown)
    return tables.read(tensors, table(config), shown)


def _split(tensors: dict, name: str, kind: str, config: GPTNeoXConfig, shown):
    """Queries, keys and values of their own in the place of rows [heads, 3, width of a head]."""
    fused = f"{name}.query_key_value.{kind}"
    rows, d, a = files.named(tensors, fused, shown), config.d_model, config.attention
    want = (3 * d, d) if kind == "weight" else (3 * d,)
    if rows.shape != want:
        raise BadInput(
            f"{shown} has weights {fused} of shape {list(rows.shape)}, but its config.json says {list(want)}"
        )
    del tensors[fused]
    for i, part in enumerate("qkv"):
        of_part = rows.reshape(a.n_head, 3, a.head_dim, *want[1:])[:, i]
        tensors[f"{name}.{part}.{kind}"] = np.ascontiguousarray(of_part).reshape(d, *want[1:])


def embed(params, config: GPTNeoXConfig, tokens, mask):
    del mask
    return layers.embed(params["embed"], tokens)


def sublayer(params, config: GPTNeoXConfig, x, i: int, mask, tap):
    layer = i if config.parallel else i // 2
    p = params[f"h_{layer}"]
    if config.parallel:
        return _mlp(p, config, x, layer, tap) + _attention(p, config, x, layer, mask, tap) + x
    return x + (_mlp(p, config, x, layer, tap) if i % 2 else _attention(p, config, x, layer, mask, tap))


def _attention(p, config: GPTNeoXConfig, x, layer: int, mask, tap):
    """What attention adds to the stream x."""
    read = layer_norm(p["attn_norm"], x, config.norm_eps)
    heads = rotary_attention.heads(p["attn"], config.attention, read, layer, mask, config.precision)
    heads = tap(Hook(layer, "attn.hook_z"), heads)
    return tap(Hook(layer, "hook_attn_out"), dense(p["attn"]["o"], heads, config.precision))


def _mlp(p, config: GPTNeoXConfig, x, layer: int, tap):
    """What the MLP adds to the stream, from the stream x that it reads."""
    read = tap(Hook(layer, "mlp.hook_in"), layer_norm(p["mlp_norm"], x, config.norm_eps))
    neurons = ACTIVATIONS[config.activation](dense(p["mlp"]["up"], read, config.precision))
    neurons = tap(Hook(layer, "mlp.hook_post"), neurons)
    return tap(Hook(layer, "hook_mlp_out"), dense(p["mlp"]["down"], neurons, config.precision))


def final_norm(params, config: GPTNeoXConfig, x):
    return layer_norm(params["norm"], x, config.norm_eps)


def unembed(params, config: GPTNeoXConfig, x):
    if config.tied:
        return matmul(x, params["embed"]["embedding"].T, config.precision)
    return dense(params["unembed"], x, config.precision)


def width(config: GPTNeoXConfig, hook: Hook) -> int:
    return config.n_inner if hook.kind == "mlp.hook_post" else config.d_model


def flops(config: GPTNeoXConfig) -> tuple[int, ...]:
    d = config.d_model
    attention, mlp = 2 * rotary_attention.weights(config.attention, d), 4 * d * config.n_inner
    block = (attention + mlp,) if config.parallel else (attention, mlp)
    return block * config.n_layer + (2 * d * config.vocab_size,)


def fold(params, config: GPTNeoXConfig):
    """Gains and biases of norms go into what reads them, biases of values into that of the output matrix, and what
    writes to the stream is centred, the unembedding over the vocabulary.
    """
    p, a = params, config.attention
    head = p.get("unembed", {"kernel": p["embed"]["embedding"].T})
    W_U, b_U = read_through(p["norm"], _biased(head))
    processed = {
        "embed": {"embedding": centre(p["embed"]["embedding"])},
        "norm": plain(p["norm"]),
        "unembed": {"kernel": centre(W_U), "bias": centre(b_U)},
    }
    for name in (f"h_{layer}" for layer in range(config.n_layer)):
        processed[name] = _fold_block(p[name], a)
    attention = replace(a, qkv_bias=True, o_bias=True)
    return processed, replace(config, tied=False, unembed_bias=True, attention=attention)


def _fold_block(p, a: Attention):
    through = lambda norm, layer: dict(zip(("kernel", "bias"), read_through(norm, _biased(layer))))
    written = lambda layer: {"kernel": centre(layer["kernel"]), "bias": centre(layer["bias"])}
    attn = {part: through(p["attn_norm"], p["attn"][part]) for part in "qkv"}
    o = _biased(p["attn"]["o"])
    o["bias"] = o["bias"] + matmul(rotary_attention.constant_output(attn, a), o["kernel"])
    attn["v"]["bias"] = jnp.zeros_like(attn["v"]["bias"])
    return {
        "attn_norm": plain(p["attn_norm"]),
        "attn": attn | {"o": written(o)},
        "mlp_norm": plain(p["mlp_norm"]),
        "mlp": {"up": through(p["mlp_norm"], p["mlp"]["up"]), "down": written(p["mlp"]["down"])},
    }


def _biased(layer) -> dict:
    """A dense layer with a bias, of zeros if it has none."""
    return {"bias": jnp.zeros(layer["kernel"].shape[1], layer["kernel"].dtype)} | layer


ARCHITECTURE = Architecture(
    read_config=read_config,
    from_hf=from_hf,
    shapes=lambda config: tables.shapes(table(config)),
    cuts=lambda config: blocks.cuts(config.n_layer, config.parallel),
    inside=lambda config: blocks.inside(config.n_layer, config.parallel),
    width=width,
    embed=embed,
    sublayer=sublayer,
    final_norm=final_norm,
    unembed=unembed,
    flops=flops,
    fold=fold,
)
