"""What a language-model family is to the rest of the package: a record of pure functions.

L blocks, D width of the residual stream, B sequences, T tokens, V vocabulary. A network is a stack of *sublayers*, each
a function from the residual stream [B, T, D] to the residual stream. A *cut* is a place between two of them, where the
network can be divided: sublayer i leads from cut i to cut i + 1, cut 0 is the embedding, and what the last cut leads to
is the final norm. Two names of one place (`blocks.0.hook_resid_post`, `blocks.1.hook_resid_pre`) are one cut.

A family is one file that defines a record `ARCHITECTURE`, and one line in `ARCHITECTURES`.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass

from jaxsae.errors import BadInput
from jaxsae.lm import hooks
from jaxsae.lm.hooks import Hook

# Families by the `model_type` of Hugging Face's config.json, and the modules that define them, imported when used.
ARCHITECTURES = {
    "gpt2": "jaxsae.lm.gpt2",
    "gpt_neo": "jaxsae.lm.gpt_neo",
    "gpt_neox": "jaxsae.lm.gpt_neox",
    "llama": "jaxsae.lm.llama",
    "mistral": "jaxsae.lm.mistral",
    "qwen2": "jaxsae.lm.qwen2",
    "qwen3": "jaxsae.lm.qwen3",
    "gemma": "jaxsae.lm.gemma",
    "gemma2": "jaxsae.lm.gemma2",
    "gemma3": "jaxsae.lm.gemma3",
    "gemma3_text": "jaxsae.lm.gemma3",
}


@dataclass(frozen=True)
class Architecture:
    """A family. Its configs are hashable and have `architecture` (the name in ARCHITECTURES), `d_model`, `n_layer`,
    `n_ctx`, `vocab_size` and `precision`; its parameters are a pytree of arrays, `mask` is None or [B, T] (see
    attention.py).
    """

    read_config: Callable
    """(dict of config.json, folder to name in messages, precision) -> config."""
    from_hf: Callable
    """(tensors by Hugging Face's names, config, name for messages) -> params."""
    shapes: Callable
    """(config) -> params with a jax.ShapeDtypeStruct in the place of each array."""
    cuts: Callable
    """(config) -> for each cut, in order, the hook points that name it: tuple[tuple[Hook, ...], ...]."""
    inside: Callable
    """(config) -> likewise for each sublayer the hook points inside it, which are beside the stream."""
    width: Callable
    """(config, hook) -> width of the activation at `hook`."""
    embed: Callable
    """(params, config, tokens [B, T], mask) -> the stream at cut 0, [B, T, D]."""
    sublayer: Callable
    """(params, config, stream [B, T, D], i, mask, tap) -> the stream at cut i + 1, [B, T, D].

    At each hook point inside, tap(hook, activation) returns what replaces the activation.
    """
    final_norm: Callable
    """(params, config, stream at the last cut) -> what the unembedding reads, [B, T, D]."""
    unembed: Callable
    """(params, config, x [..., D]) -> logits [..., V] before `cap`: an affine function of x."""
    flops: Callable
    """(config) -> forward FLOPs per token of each sublayer, last of the unembedding; attention's own left out."""
    fold: Callable
    """(params, config) -> (params, config) with TransformerLens's weight processing (see fold.py)."""
    cap: Callable = lambda config, logits: logits
    """(config, logits [..., V]) -> the logits [..., V]: a soft-cap, each from its own, in families that have one."""


def get(name: str) -> Architecture:
    """The family called `name` in ARCHITECTURES."""
    return importlib.import_module(ARCHITECTURES[name]).ARCHITECTURE


def of(config) -> Architecture:
    """The family that `config` belongs to."""
    return get(config.architecture)


@functools.cache
def places(config) -> dict[Hook, tuple[int, bool]]:
    """{hook point: (number of its cut, True)}, or of the last cut before it and False if it is inside a sublayer."""
    family = of(config)
    named = lambda groups, at_cut: {hook: (i, at_cut) for i, names in enumerate(groups) for hook in names}
    return named(family.cuts(config), True) | named(family.inside(config), False)


def parse(config, hook) -> Hook:
    """The hook point called `hook`. Raises BadInput if the model does not have it."""
    return hooks.parse(str(hook), config.n_layer, tuple(dict.fromkeys(at.kind for at in places(config))))


def depth(config, hook) -> int:
    """The number of the cut at residual hook point `hook`. Raises BadInput for a hook point beside the stream."""
    i, at_cut = places(config)[parse(config, hook)]
    if not at_cut:
        kinds = dict.fromkeys(at.kind for at, (_, at_cut) in places(config).items() if at_cut)
        allowed = ", ".join(f"blocks.L.{kind}" for kind in kinds)
        raise BadInput(f"{hook} is not in the residual stream, where alone the network can be cut: give {allowed}")
    return i


def width(config, hook) -> int:
    """Width of the activation at `hook`."""
    return of(config).width(config, parse(config, hook))


def block_ends(config, hook) -> list[str]:
    """The ends of all blocks downstream of residual hook point `hook`, the last one included, in order."""
    ends = [str(Hook(layer, "hook_resid_post")) for layer in range(config.n_layer)]
    return [end for end in ends if depth(config, end) > depth(config, hook)]


def block_starts(config, hook) -> list[str]:
    """The starts of all blocks downstream of residual hook point `hook`, in order."""
    starts = [str(Hook(layer, "hook_resid_pre")) for layer in range(config.n_layer)]
    return [start for start in starts if depth(config, start) > depth(config, hook)]


def around(config, hook) -> tuple[str, str]:
    """The residual hook points before and after `hook`, which is inside a sublayer; twice itself if it is residual."""
    i, at_cut = places(config)[parse(config, hook)]
    if at_cut:
        return str(hook), str(hook)
    cuts = of(config).cuts(config)
    return str(cuts[i][0]), str(cuts[i + 1][0])


def check_order(config, hook, later):
    """Raises BadInput if hook point `later` is not after `hook` in the network."""

    def position(name):
        hook = parse(config, name)
        i, at_cut = places(config)[hook]
        return i, 0 if at_cut else 1 + of(config).inside(config)[i].index(hook)

    if position(later) <= position(hook):
        raise BadInput(f"{later} is not after {hook} in the network: give a later hook point")


def flops(config, hook) -> tuple[int, int]:
    """Forward FLOPs per token before and after hook point `hook`; the products inside attention left out.

    All of the sublayer that a hook point is inside counts as after it.
    """
    costs, cut = of(config).flops(config), places(config)[parse(config, hook)][0]
    return sum(costs[:cut]), sum(costs[cut:])
