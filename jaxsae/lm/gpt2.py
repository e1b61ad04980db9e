"""GPT-2 and GPT-Neo in Flax, in pieces that meet at hook points.

B sequences, T positions, D width, H heads, V vocabulary. A residual hook point cuts the network in two: `upto` runs
the layers before it and nothing else, `onward` the layers after it. Every hook point also has a tap, a function that
sees the activation there and returns what replaces it.

A GPT-Neo is a GPT-2 whose attention is not scaled and, in some layers, sees only a window of positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxsae.lm.hooks import Hook
from jaxsae.precision import PRECISION, Products, dense_dot, matmul

Taps = Mapping[Hook, Callable[[jax.Array], jax.Array]]

ACTIVATIONS = {
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
}


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2 or a GPT-Neo; `read_config` in weights.py reads one from a Hugging Face config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
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
    products: Products = "float32"

    def width(self, hook: Hook) -> int:
        """Width of the activation at `hook`."""
        return self.n_inner if hook.kind == "mlp.hook_post" else self.n_embd


def attention(q, k, v, scale: float, window: int | None = None):
    """Causal attention, to the last `window` positions if given, q, k, v [B, T, H, D/H] -> [B, T, H, D/H]."""
    if q.dtype != jnp.float64:
        # JAX counts the positions before and after a token, and not the token itself.
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, local_window_size=local)
    # jax.nn.dot_product_attention takes its softmax in float32 whatever the input; float64 is asked for to compare
    # to more digits than that.
    logits = jnp.einsum("bthd,bshd->bhts", q, k) * scale
    seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    if window is not None:
        seen = jnp.triu(seen, 1 - window)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), v)


class Attention(nn.Module):
    config: GPT2Config
    layer: int

    @nn.compact
    def __call__(self, x):
        c = self.config
        dot = dense_dot(c.products)
        qkv = nn.Dense(3 * c.n_embd, dot_general=dot, name="c_attn")(x)
        q, k, v = jnp.split(qkv.reshape(*x.shape[:-1], 3 * c.n_head, -1), 3, axis=-2)
        scale = (c.n_embd // c.n_head) ** -0.5 if c.scale_attn_weights else 1.0
        if c.scale_attn_by_inverse_layer_idx:
            scale /= self.layer + 1
        with jax.default_matmul_precision(PRECISION[c.products]):
            y = attention(q, k, v, scale, c.windows[self.layer] if c.windows else None)
        return nn.Dense(c.n_embd, dot_general=dot, name="c_proj")(y.reshape(x.shape))


class Block(nn.Module):
    """One block as two halves, residual stream in, residual stream out, [B, T, D]."""

    config: GPT2Config
    layer: int

    def setup(self):
        # The fast variance E[x^2] - E[x]^2 differs from PyTorch's in the fourth digit at position 0.
        norm = lambda: nn.LayerNorm(self.config.layer_norm_epsilon, use_fast_variance=False)
        dense = lambda width: nn.Dense(width, dot_general=dense_dot(self.config.products))
        self.ln_1, self.attn = norm(), Attention(self.config, self.layer)
        self.ln_2, self.c_fc, self.c_proj = norm(), dense(self.config.n_inner), dense(self.config.n_embd)

    def attn_out(self, x):
        return self.attn(self.ln_1(x))

    def neurons(self, x):
        """[B, T, D] -> [B, T, n_inner]."""
        return ACTIVATIONS[self.config.activation_function](self.c_fc(self.ln_2(x)))

    def mlp_out(self, neurons):
        return self.c_proj(neurons)

    def half(self, x, second: bool, taps: Taps):
        """Attention's half (resid_pre to resid_mid) or the MLP's (resid_mid to resid_post)."""
        tap = lambda kind, value: taps.get(Hook(self.layer, kind), lambda a: a)(value)
        if second:
            neurons = tap("mlp.hook_post", self.neurons(x))
            return tap("hook_resid_post", x + tap("hook_mlp_out", self.mlp_out(neurons)))
        x = tap("hook_resid_pre", x)
        return tap("hook_resid_mid", x + tap("hook_attn_out", self.attn_out(x)))


def halves_before(hook: Hook) -> int:
    """How many half blocks a residual hook point has before it (resid_post L and resid_pre L + 1 are one place)."""
    return 2 * hook.layer + {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_post": 2}[hook.kind]


def flops_of_pieces(config: GPT2Config, hook: Hook) -> tuple[int, int]:
    """FLOPs per token before and behind a residual hook point: those of the matrices, attention's own left out."""
    d, halves = config.n_embd, (8 * config.n_embd**2, 4 * config.n_embd * config.n_inner)
    blocks = [halves[half % 2] for half in range(2 * config.n_layer)]
    cut = halves_before(hook)
    return sum(blocks[:cut]), sum(blocks[cut:]) + 2 * d * config.vocab_size


class GPT2(nn.Module):
    """Token ids [B, T] to logits [B, T, V], cut at any hook point."""

    config: GPT2Config

    def setup(self):
        c = self.config
        self.wte, self.wpe = nn.Embed(c.vocab_size, c.n_embd), nn.Embed(c.n_positions, c.n_embd)
        self.h = [Block(c, layer) for layer in range(c.n_layer)]
        self.ln_f = nn.LayerNorm(c.layer_norm_epsilon, use_fast_variance=False)
        if not c.tied:
            self.lm_head = nn.Dense(c.vocab_size, dot_general=dense_dot(c.products))

    def embed(self, tokens):
        return self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[-1]))

    def _halves(self, x, start: int, stop: int, taps: Taps):
        for i in range(start, stop):
            x = self.h[i // 2].half(x, bool(i % 2), taps)
        return x

    def upto(self, tokens, hook: Hook):
        """The activation at `hook`, [B, T, width]; nothing after it is computed."""
        if hook.residual:
            return self._halves(self.embed(tokens), 0, halves_before(hook), {})
        block, attention_half = self.h[hook.layer], hook.kind == "hook_attn_out"
        x = self._halves(self.embed(tokens), 0, 2 * hook.layer + (not attention_half), {})
        if attention_half:
            return block.attn_out(x)
        neurons = block.neurons(x)
        return neurons if hook.kind == "mlp.hook_post" else block.mlp_out(neurons)

    def between(self, x, start: Hook, stop: Hook):
        """The residual stream [B, T, D] at `stop` from that at `start`; only what lies between is computed."""
        return self._halves(x, halves_before(start), halves_before(stop), {})

    def onward(self, x, hook: Hook, taps: Taps = {}):
        """From the residual stream [B, T, D] at `hook` to what the unembedding reads; nothing before is computed."""
        return self.ln_f(self._halves(x, halves_before(hook), 2 * self.config.n_layer, taps))

    def through(self, tokens, taps: Taps = {}):
        """From tokens to what the unembedding reads, with taps anywhere."""
        return self.onward(self.embed(tokens), Hook(0, "hook_resid_pre"), taps)

    def unembed(self, x):
        """[..., D] -> logits [..., V]."""
        if not self.config.tied:
            return self.lm_head(x)
        return matmul(x, self.wte.embedding.T, self.config.products)

    def __call__(self, tokens):
        return self.unembed(self.through(tokens))
