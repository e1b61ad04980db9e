"""The subject model: a frozen GPT-2 or GPT-Neo as a pytree, and the pure functions that run pieces of it.

    stream = prefix(lm, tokens, "blocks.8.hook_resid_post")        # [B, T, D]; runs blocks 0 to 8 only
    logits = suffix(lm, stream, "blocks.8.hook_resid_post")        # [B, T, V]; runs blocks 9 to 11 only
    logits = run(lm, tokens, {"blocks.3.mlp.hook_post": f})        # f's result replaces the activation
    values = capture(lm, tokens, ["blocks.3.hook_attn_out"])       # {hook: [B, T, width]}

Pass an LM to jitted functions as an argument; closing over one would turn its parameters into constants.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax

from jaxsae.errors import BadInput
from jaxsae.lm.gpt2 import GPT2, GPT2Config, halves_before
from jaxsae.lm.hooks import Hook, parse


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "folder"])
@dataclass(frozen=True)
class LM:
    """A language model: Flax parameters, their configuration, and the folder that its tokenizer's files lie in."""

    params: dict
    config: GPT2Config
    folder: str | None = None

    def prefix(self, tokens, hook):
        return prefix(self, tokens, hook)

    def suffix(self, stream, hook):
        return suffix(self, stream, hook)

    def final(self, stream, hook):
        return final(self, stream, hook)

    def unembed(self, x):
        return unembed(self, x)

    def run(self, tokens, taps={}):
        return run(self, tokens, taps)


def _apply(lm: LM, method, *args):
    return GPT2(lm.config).apply({"params": lm.params}, *args, method=method)


def _hook(lm: LM, hook: str | Hook) -> Hook:
    return parse(str(hook), lm.config.n_layer)


def _residual(lm: LM, hook: str | Hook) -> Hook:
    hook = _hook(lm, hook)
    if not hook.residual:
        raise BadInput(f"the network cannot be cut at {hook}: take a residual hook point, or run(...) with a tap")
    return hook


def _check_tokens(lm: LM, tokens):
    if tokens.shape[-1] > lm.config.n_positions:
        raise BadInput(
            f"a context of {tokens.shape[-1]} tokens is longer than the model's {lm.config.n_positions} positions"
        )


def prefix(lm: LM, tokens, hook):
    """The activation at `hook` of token ids [B, T]: [B, T, width]. Nothing after the hook point is computed."""
    _check_tokens(lm, tokens)
    return _apply(lm, GPT2.upto, tokens, _hook(lm, hook))


def advance(lm: LM, stream, start, stop):
    """The residual stream [B, T, D] at hook `stop` from that at `start`; only what lies between is computed."""
    start, stop = _residual(lm, start), _residual(lm, stop)
    if halves_before(stop) < halves_before(start):
        raise BadInput(f"{stop} lies before {start}: the stream cannot be run backwards")
    return _apply(lm, GPT2.between, stream, start, stop)


def final(lm: LM, stream, hook):
    """From the residual stream [B, T, D] at `hook` to what the unembedding reads, [B, T, D]."""
    return _apply(lm, GPT2.onward, stream, _residual(lm, hook))


def unembed(lm: LM, x):
    """Logits [..., V] of the final, normalised stream [..., D]."""
    return _apply(lm, GPT2.unembed, x)


def suffix(lm: LM, stream, hook):
    """Logits [B, T, V] from the residual stream [B, T, D] at `hook`. Nothing before the hook point is computed."""
    return unembed(lm, final(lm, stream, hook))


def run(lm: LM, tokens, taps: Mapping[str, Callable] = {}):
    """Logits [B, T, V] of token ids [B, T]; each tap sees the activation at its hook and returns what replaces it."""
    _check_tokens(lm, tokens)
    taps = {_hook(lm, name): tap for name, tap in taps.items()}
    return unembed(lm, _apply(lm, GPT2.through, tokens, taps))


def capture(lm: LM, tokens, hooks: Sequence[str], taps: Mapping[str, Callable] = {}):
    """The activations {hook: [B, T, width]} at several hook points of one pass, and its logits [B, T, V].

    A hook that also has a tap is captured before the tap replaces it.
    """
    seen = {}

    def keep(name):
        def tap(x):
            seen[name] = x
            return taps[name](x) if name in taps else x

        return tap

    logits = run(lm, tokens, {**taps, **{name: keep(name) for name in hooks}})
    return seen, logits
