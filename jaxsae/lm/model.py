"""A frozen language model as a pytree, and the pure functions that run pieces of it. B sequences, T tokens, D width.

    stream = prefix(lm, tokens, "blocks.8.hook_resid_post")        # [B, T, D]; runs blocks 0 to 8 only
    logits = suffix(lm, stream, "blocks.8.hook_resid_post")        # [B, T, V]; runs blocks 9 to 11 only
    logits = run(lm, tokens, {"blocks.3.mlp.hook_post": f})        # f's result replaces the activation
    values, logits = capture(lm, tokens, ["blocks.3.hook_attn_out"])    # {hook: [B, T, width]}

Everything here is written once, over the record of architecture.py, for every family. A `mask` [B, T] is True at real
tokens and None if all are: padding, on either side and with any ids, changes nothing at real tokens. Give the same mask
to `prefix` and to `suffix`.

Token ids outside the vocabulary are refused if their values are known: outside `jit`. Inside it nobody knows them, and
at such a token activations are not numbers, or those of another token: check ids before they get there.

Pass an LM to jitted functions as an argument; closing over one would turn its parameters into constants.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm import late
from jaxsae.lm.architecture import depth, of, parse, places
from jaxsae.lm.hooks import Hook


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["config", "folder", "split"])
@dataclass(frozen=True)
class LM:
    """A language model: its family's parameters and config, and the folder that its tokenizer's files lie in."""

    params: Any
    config: Any
    folder: str | None = None
    split: tuple[int | None, ...] | None = None
    """For each leaf of `params` the axis along which it is split over all devices of a mesh, None if it lies whole on
    every device; None if all do."""

    def prefix(self, tokens, hook, mask=None):
        return prefix(self, tokens, hook, mask)

    def suffix(self, stream, hook, mask=None):
        return suffix(self, stream, hook, mask)

    def final(self, stream, hook, mask=None):
        return final(self, stream, hook, mask)

    def unembed(self, x):
        return unembed(self, x)

    def run(self, tokens, taps={}, mask=None):
        return run(self, tokens, taps, mask)


def prefix(lm: LM, tokens, hook, mask=None):
    """The activation at `hook` of token ids [B, T]: [B, T, width]. Inside `jit`, nothing after the hook is computed."""
    return prefixes(lm, tokens, (hook,), mask=mask)[hook]


def prefixes(lm: LM, tokens, hooks: Sequence[str], taps: Mapping[str, Callable] = {}, mask=None):
    """The activations {hook: [B, T, width]} at several hook points, from one pass that ends at the last of them.

    Taps are as in `run`. A hook that also has one is read before the tap replaces it.
    """
    seen, taps = _keeping(lm, hooks, taps)
    ends = (places(lm.config)[parse(lm.config, hook)] for hook in hooks)
    _through(lm, _embed(lm, tokens, mask, taps), 0, max(cut + (not at_cut) for cut, at_cut in ends), mask, taps)
    return seen


def advance(lm: LM, stream, start, stop, mask=None, taps: Mapping[str, Callable] = {}):
    """The residual stream [B, T, D] at hook `stop` from that at `start`; only what lies between is computed.

    Each tap sees the activation at its hook, after `start`, and returns what replaces it.
    """
    _check_mask(mask, stream.shape[:-1])
    first, last = depth(lm.config, start), depth(lm.config, stop)
    if last < first:
        raise BadInput(f"{stop} lies before {start}: the stream cannot be run backwards")
    return _through(lm, stream, first, last, mask, _parsed(lm, taps))


def final(lm: LM, stream, hook, mask=None):
    """From the residual stream [B, T, D] at `hook` to what the unembedding reads, [B, T, D]."""
    _check_mask(mask, stream.shape[:-1])
    return _finish(lm, stream, depth(lm.config, hook), mask)


def unembed(lm: LM, x):
    """Logits [..., V] of the final, normalised stream [..., D]."""
    return cap(lm, affine_logits(lm, x))


def affine_logits(lm: LM, x):
    """Logits [..., V] before the soft-cap that some families have, an affine function of the final stream [..., D]."""
    return late.call(lambda params, x: of(lm.config).unembed(params, lm.config, x), lm, "unembed", x)


def cap(lm: LM, logits):
    """Logits [..., V] from those before the soft-cap, each from its own."""
    return of(lm.config).cap(lm.config, logits)


def suffix(lm: LM, stream, hook, mask=None):
    """Logits [B, T, V] from the residual stream [B, T, D] at `hook`. Nothing before the hook point is computed."""
    return unembed(lm, final(lm, stream, hook, mask))


def run(lm: LM, tokens, taps: Mapping[str, Callable] = {}, mask=None):
    """Logits [B, T, V] of token ids [B, T]; each tap sees the activation at its hook and returns what replaces it."""
    return _run(lm, tokens, _parsed(lm, taps), mask)


def capture(lm: LM, tokens, hooks: Sequence[str], taps: Mapping[str, Callable] = {}, mask=None):
    """The activations {hook: [B, T, width]} at several hook points of one pass, and its logits [B, T, V].

    As `prefixes`, to the end of the model.
    """
    seen, taps = _keeping(lm, hooks, taps)
    return seen, _run(lm, tokens, taps, mask)


def process_weights(lm: LM) -> LM:
    """The model after TransformerLens's weight processing (fold.py); it has an unembedding of its own."""
    params, config = of(lm.config).fold(lm.params, lm.config)
    return replace(lm, params=params, config=config)


def _parsed(lm: LM, taps: Mapping[str, Callable]) -> dict[Hook, Callable]:
    return {parse(lm.config, name): tap for name, tap in taps.items()}


def _keeping(lm: LM, hooks: Sequence[str], taps: Mapping[str, Callable]) -> tuple[dict, dict[Hook, Callable]]:
    """(what a pass with these taps puts the activations at `hooks` into, the taps)."""
    seen = {}

    def keep(name):
        def tap(x):
            seen[name] = x
            return taps[name](x) if name in taps else x

        return tap

    return seen, _parsed(lm, {**taps, **{name: keep(name) for name in hooks}})


def _run(lm: LM, tokens, taps: Mapping[Hook, Callable], mask):
    return unembed(lm, _finish(lm, _embed(lm, tokens, mask, taps), 0, mask, taps))


def _embed(lm: LM, tokens, mask, taps: Mapping[Hook, Callable]):
    """The stream at cut 0."""
    _check_tokens(lm, tokens, mask)
    # Padding may have any id: a number that is not one would reach real tokens, even with a weight of 0.
    tokens = tokens if mask is None else jnp.where(jnp.asarray(mask, bool), tokens, 0)
    embed = lambda params, tokens: of(lm.config).embed(params, lm.config, tokens, mask)
    return _tapped(lm, late.call(embed, lm, "embed", tokens), 0, taps)


def _tapped(lm: LM, stream, cut: int, taps: Mapping[Hook, Callable]):
    """The stream at a cut after the taps there."""
    for hook in of(lm.config).cuts(lm.config)[cut]:
        stream = taps[hook](stream) if hook in taps else stream
    return stream


def _sublayer(lm: LM, stream, i: int, mask, taps: Mapping[Hook, Callable]):
    """The stream at cut i + 1, before the taps there, from that at cut i."""
    family = of(lm.config)
    tap = lambda hook, value: taps[hook](value) if hook in taps else value
    run = lambda params, stream: family.sublayer(params, lm.config, stream, i, mask, tap)
    # What a tap sees may leave the sublayer, which is then not run again by a backward pass.
    again = not any(hook in taps for hook in family.inside(lm.config)[i])
    return late.call(run, lm, "sublayer", stream, i, again)


def _through(lm: LM, stream, start: int, stop: int, mask, taps: Mapping[Hook, Callable] = {}):
    """The stream at cut `stop` from that at cut `start`, with the taps after `start`."""
    for i in range(start, stop):
        stream = _tapped(lm, _sublayer(lm, stream, i, mask, taps), i + 1, taps)
    return stream


def _finish(lm: LM, stream, start: int, mask, taps: Mapping[Hook, Callable] = {}):
    """What the unembedding reads, from the stream at cut `start`."""
    family = of(lm.config)
    stream = _through(lm, stream, start, len(family.cuts(lm.config)) - 1, mask, taps)
    norm = lambda params, stream: family.final_norm(params, lm.config, stream)
    return late.call(norm, lm, "final_norm", stream)


def _check_tokens(lm: LM, tokens, mask):
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise BadInput(f"token ids have shape {list(tokens.shape)} and type {tokens.dtype}: give whole numbers [b, T]")
    length, vocabulary = tokens.shape[-1], lm.config.vocab_size
    if length > lm.config.n_ctx:
        raise BadInput(f"a context of {length} tokens is longer than the model's {lm.config.n_ctx} positions")
    _check_mask(mask, tokens.shape)
    if _known(tokens) and (mask is None or _known(mask)):
        ids = np.asarray(tokens)
        wrong = (ids < 0) | (ids >= vocabulary)
        wrong &= True if mask is None else np.asarray(mask, bool)
        if wrong.any():
            # The largest of them; a negative one if no id is too large.
            at = np.argwhere(wrong)[np.argmax(ids[wrong])]
            raise BadInput(
                f"token id {ids[tuple(at)]} (context {at[0]}, position {at[1]}) is outside the model's vocabulary of "
                f"{vocabulary}: give ids from 0 to {vocabulary - 1}, or mask what is padding"
            )


def _known(a) -> bool:
    """Whether the numbers of an array are there to be looked at: it is not traced, and all of it is in this process."""
    return not isinstance(a, jax.core.Tracer) and getattr(a, "is_fully_addressable", True)


def _check_mask(mask, shape):
    if mask is not None and mask.shape != shape:
        raise BadInput(f"the mask has shape {list(mask.shape)}, but the tokens {list(shape)}: give one for each")
