"""GPT-2 in Flax. B sequences, T tokens, D width, H heads, V vocabulary.

Two sublayers a block: attention (resid_pre to resid_mid) and the MLP (resid_mid to resid_post). The module also serves
families that differ in the attention's scale or window alone.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm import blocks
from jaxsae.lm import hf as files
from jaxsae.lm.architecture import Architecture
from jaxsae.lm.attention import attention, positions
from jaxsae.lm.fold import centre, plain, read_through
from jaxsae.lm.hooks import Hook
from jaxsae.lm.layers import ACTIVATIONS
from jaxsae.precision import PRECISION, Precision, dense_dot, matmul


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, and what its config.json can switch."""

    vocab_size: int
    n_ctx: int
    d_model: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    # By layer, how many positions a token attends to, itself and those just before it (None: all). Empty: all, always.
    windows: tuple[int | None, ...] = ()
    # Tied: the unembedding is the transposed token embedding. Untied: a matrix and a bias of its own.
    tied: bool = True
    precision: Precision = "float32"
    architecture: str = "gpt2"


class Attention(nn.Module):
    config: GPT2Config
    layer: int

    @nn.compact
    def __call__(self, x, mask, tap):
        c = self.config
        dot = dense_dot(c.precision)
        qkv = nn.Dense(3 * c.d_model, dot_general=dot, name="c_attn")(x)
        q, k, v = jnp.split(qkv.reshape(*x.shape[:-1], 3 * c.n_head, -1), 3, axis=-2)
        scale = (c.d_model // c.n_head) ** -0.5 if c.scale_attn_weights else 1.0
        if c.scale_attn_by_inverse_layer_idx:
            scale /= self.layer + 1
        with jax.default_matmul_precision(PRECISION[c.precision]):
            y = attention(q, k, v, scale, c.windows[self.layer] if c.windows else None, mask)
        heads = tap(Hook(self.layer, "attn.hook_z"), y.reshape(x.shape))
        return nn.Dense(c.d_model, dot_general=dot, name="c_proj")(heads)


class Block(nn.Module):
    """One block as two sublayers, residual stream [B, T, D] in, residual stream out."""

    config: GPT2Config
    layer: int

    def setup(self):
        # The fast variance E[x^2] - E[x]^2 differs from PyTorch's in the fourth digit at position 0.
        norm = lambda: nn.LayerNorm(self.config.layer_norm_epsilon, use_fast_variance=False)
        dense = lambda width: nn.Dense(width, dot_general=dense_dot(self.config.precision))
        self.ln_1, self.attn = norm(), Attention(self.config, self.layer)
        self.ln_2, self.c_fc, self.c_proj = norm(), dense(self.config.n_inner), dense(self.config.d_model)

    def attention(self, x, mask, tap):
        return x + tap(Hook(self.layer, "hook_attn_out"), self.attn(self.ln_1(x), mask, tap))

    def mlp(self, x, mask, tap):
        normed = tap(Hook(self.layer, "mlp.hook_in"), self.ln_2(x))
        neurons = ACTIVATIONS[self.config.activation_function](self.c_fc(normed))
        neurons = tap(Hook(self.layer, "mlp.hook_post"), neurons)
        return x + tap(Hook(self.layer, "hook_mlp_out"), self.c_proj(neurons))


class GPT2(nn.Module):
    """Token ids [B, T] to logits [B, T, V], and the pieces of it."""

    config: GPT2Config

    def setup(self):
        c = self.config
        self.wte, self.wpe = nn.Embed(c.vocab_size, c.d_model), nn.Embed(c.n_ctx, c.d_model)
        self.h = [Block(c, layer) for layer in range(c.n_layer)]
        self.ln_f = nn.LayerNorm(c.layer_norm_epsilon, use_fast_variance=False)
        if not c.tied:
            self.lm_head = nn.Dense(c.vocab_size, dot_general=dense_dot(c.precision))

    def embed(self, tokens, mask):
        rows = self.wte(tokens), self.wpe(positions(mask, tokens.shape[-1]))
        # Of tables in half precision only the rows that are read are widened.
        return sum(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in rows)

    def sublayer(self, x, i, mask, tap):
        block = self.h[i // 2]
        return (block.mlp if i % 2 else block.attention)(x, mask, tap)

    def final_norm(self, x):
        return self.ln_f(x)

    def unembed(self, x):
        if not self.config.tied:
            return self.lm_head(x)
        return matmul(x, self.wte.embedding.T, self.config.precision)

    def __call__(self, tokens):
        x = self.embed(tokens, None)
        for i in range(2 * self.config.n_layer):
            x = self.sublayer(x, i, None, lambda hook, value: value)
        return self.unembed(self.final_norm(x))


def _piece(method):
    """A method of the module as a function of (params, config, ...)."""
    return lambda params, config, *args: GPT2(config).apply({"params": params}, *args, method=method)


def shapes(config: GPT2Config) -> dict:
    return jax.eval_shape(GPT2(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]


def width(config: GPT2Config, hook: Hook) -> int:
    return config.n_inner if hook.kind == "mlp.hook_post" else config.d_model


def flops(config: GPT2Config) -> tuple[int, ...]:
    d = config.d_model
    return (8 * d**2, 4 * d * config.n_inner) * config.n_layer + (2 * d * config.vocab_size,)


def read_config(hf: dict, folder: Path, precision: Precision) -> GPT2Config:
    size = lambda name, default=None: files.size(hf, name, folder, default)
    flag = lambda name, default: files.flag(hf, name, default, folder)
    files.refuse(hf, ("add_cross_attention", "pruned_heads"), folder)
    # It orders and rounds the same products in another way.
    flag("reorder_and_upcast_attn", False)
    config = GPT2Config(
        vocab_size=size("vocab_size"),
        n_ctx=size("n_positions"),
        d_model=(d := size("n_embd")),
        n_layer=size("n_layer"),
        n_head=(heads := size("n_head")),
        n_inner=size("n_inner", 4 * d),
        activation_function=files.choice(hf, "activation_function", "gelu_new", ACTIVATIONS, folder),
        layer_norm_epsilon=files.positive(hf, "layer_norm_epsilon", 1e-5, folder),
        scale_attn_weights=flag("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=flag("scale_attn_by_inverse_layer_idx", False),
        tied=flag("tie_word_embeddings", True),
        precision=precision,
    )
    if d % heads:
        raise BadInput(f"{folder}/config.json: n_embd {d} is not a multiple of n_head {heads}")
    return config


def hf_names(config: GPT2Config) -> dict[str, tuple[str, ...]]:
    """{Hugging Face's name of a tensor, without `transformer.`: its path in the Flax parameters}.

    The Conv1D of Hugging Face's GPT-2 stores its kernels [in, out], as Flax does: names change and numbers do not.
    """
    names = {
        "wte.weight": ("wte", "embedding"),
        "wpe.weight": ("wpe", "embedding"),
        "ln_f.weight": ("ln_f", "scale"),
        "ln_f.bias": ("ln_f", "bias"),
    }
    dense = {"attn.c_attn": ("attn", "c_attn"), "attn.c_proj": ("attn", "c_proj")}
    dense |= {"mlp.c_fc": ("c_fc",), "mlp.c_proj": ("c_proj",)}
    for layer in range(config.n_layer):
        for norm in ("ln_1", "ln_2"):
            names[f"h.{layer}.{norm}.weight"] = (f"h_{layer}", norm, "scale")
            names[f"h.{layer}.{norm}.bias"] = (f"h_{layer}", norm, "bias")
        for theirs, ours in dense.items():
            names[f"h.{layer}.{theirs}.weight"] = (f"h_{layer}", *ours, "kernel")
            names[f"h.{layer}.{theirs}.bias"] = (f"h_{layer}", *ours, "bias")
    return names


def from_hf(tensors: dict[str, np.ndarray], config: GPT2Config, shown="the model") -> dict:
    # The hub's original gpt2 has no prefix, and carries causal masks as `h.*.attn.bias` (not `c_attn.bias`).
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    if any(name.startswith(f"h.{config.n_layer}.") for name in tensors):
        raise BadInput(f"{shown} has weights of more layers than the {config.n_layer} of its config.json")
    params = files.nested(tensors, hf_names(config), shown)
    head = tensors.get("lm_head.weight")
    if config.tied and head is not None and not np.array_equal(head, tensors["wte.weight"]):
        raise BadInput(
            f"{shown} has an lm_head.weight that is not its wte.weight, but its config.json says that they are tied: "
            "say there whether they are, by tie_word_embeddings false, or remove lm_head.weight"
        )
    if not config.tied:
        if head is None:
            raise BadInput(f"{shown} has no weights called lm_head.weight, but its config.json says that it is untied")
        params["lm_head"] = {"kernel": head.T, "bias": np.zeros(config.vocab_size, head.dtype)}
    return params


def to_hf(params: dict, config: GPT2Config) -> dict[str, np.ndarray]:
    """The tensors that `from_hf` reads. Raises BadInput for an untied model, whose unembedding has no place there, and
    for one with attention windows, which would be read without them.
    """
    if not config.tied:
        raise BadInput("only a model whose unembedding is its token embedding can be written in this format")
    if config.windows:
        raise BadInput("a model whose attention has windows cannot be written as a GPT-2, which has none")
    return {f"transformer.{name}": x for name, x in files.flat(params, hf_names(config)).items()}


def fold(params: dict, config: GPT2Config) -> tuple[dict, GPT2Config]:
    p, c = params, config
    head = p["lm_head"] if not c.tied else {"kernel": p["wte"]["embedding"].T, "bias": jnp.zeros(c.vocab_size)}
    W_U, b_U = read_through(p["ln_f"], head)
    processed = {
        "wte": {"embedding": centre(p["wte"]["embedding"])},
        "wpe": {"embedding": centre(p["wpe"]["embedding"])},
        "ln_f": plain(p["ln_f"]),
        "lm_head": {"kernel": centre(W_U), "bias": centre(b_U)},
    }
    for name in (f"h_{layer}" for layer in range(c.n_layer)):
        processed[name] = _fold_block(p[name], c.d_model)
    return processed, replace(c, tied=False)


def _fold_block(p, d):
    W_qkv, b_qkv = read_through(p["ln_1"], p["attn"]["c_attn"])
    W_in, b_in = read_through(p["ln_2"], p["c_fc"])
    # A constant value vector passes attention unchanged, because its weights sum to one.
    W_O = p["attn"]["c_proj"]["kernel"]
    b_O = p["attn"]["c_proj"]["bias"] + matmul(b_qkv[2 * d :], W_O)
    b_qkv = b_qkv.at[2 * d :].set(0)
    return {
        "ln_1": plain(p["ln_1"]),
        "attn": {
            "c_attn": {"kernel": W_qkv, "bias": b_qkv},
            "c_proj": {"kernel": centre(W_O), "bias": centre(b_O)},
        },
        "ln_2": plain(p["ln_2"]),
        "c_fc": {"kernel": W_in, "bias": b_in},
        "c_proj": {"kernel": centre(p["c_proj"]["kernel"]), "bias": centre(p["c_proj"]["bias"])},
    }


ARCHITECTURE = Architecture(
    read_config=read_config,
    from_hf=from_hf,
    shapes=shapes,
    cuts=lambda config: blocks.cuts(config.n_layer),
    inside=lambda config: blocks.inside(config.n_layer),
    width=width,
    embed=_piece(GPT2.embed),
    sublayer=_piece(GPT2.sublayer),
    final_norm=_piece(GPT2.final_norm),
    unembed=_piece(GPT2.unembed),
    flops=flops,
    fold=fold,
)
