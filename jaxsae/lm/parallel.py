"""A language model over a mesh: contexts are split over all devices, in training and in evaluation."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from jaxsae.lm import late
from jaxsae.lm.model import LM


def on_contexts(function: Callable, lm, *trees):
    """function(lm, *trees), where every array has a leading axis of contexts, [b@data, ...].

    What a language model makes of one context does not need another: each device runs `function` on some of them, split
    over all devices where they divide. Results [b, ...] stay where they were made: over `data`, or over both axes.
    `lm` is a tree that lies whole on every device, but for language models in it that are split.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    contexts = len(jax.tree.leaves(trees)[0])
    everywhere = contexts % (shape["data"] * shape["latent"]) == 0
    split = PartitionSpec(("data", "latent") if everywhere else "data")
    trees = jax.tree.map(lambda a: jax.reshard(a, split), trees)
    whole = lambda node: late.specs(node) if isinstance(node, LM) else PartitionSpec()
    specs = jax.tree.map(whole, lm, is_leaf=lambda node: isinstance(node, LM)), *(split for _ in trees)
    return jax.shard_map(function, in_specs=specs, out_specs=split)(lm, *trees)
