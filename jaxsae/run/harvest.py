"""`jaxsae harvest`: activations of a language model, written to files once."""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxsae.data import harvest as shards
from jaxsae.data.config import SPECIAL
from jaxsae.data.harvested import Harvest
from jaxsae.data.tokens import HELD_OUT_EVERY
from jaxsae.distributed.mesh import make_mesh
from jaxsae.lm import architecture, special_token
from jaxsae.lm.config import LMConfig
from jaxsae.run.harvest_config import HarvestConfig
from jaxsae.run.inputs import RunInputs, open_inputs


def harvest(config: HarvestConfig) -> Harvest:
    """Write the activations that `config` asks for; returns the index of what is in its folder then.

    Raises BadInput for what cannot be read, or if the folder holds something else.
    """
    names = ("lm", "lm_precision", "lm_dtype", "lm_shard", "process_weights")
    lm = LMConfig(hook=next(iter(config.hook), None), **{name: getattr(config, name) for name in names})
    mesh = lambda d: make_mesh(jax.device_count(), 1)
    need = _need(config)
    inputs = open_inputs(lm, config.data, mesh, partial(_check_hooks, config), need=need)
    sources = {split: inputs.source(split, config.seed) for split in need}
    asked = _asked(config, inputs, sources)
    _announce(asked, inputs, config.out)
    sources = {split: source for split, source in sources.items() if split in asked.tokens}
    return shards.write(Path(config.out), asked, inputs.lm, sources, inputs.mesh)


def _need(config: HarvestConfig) -> dict[str, int | None]:
    """Tokens that are read of each part of the text; None: all."""
    held_out = config.held_out_tokens
    if held_out is None and config.tokens is not None:
        held_out = _held_out_of(config.tokens)
    return {"train": config.tokens} | ({} if held_out == 0 else {"held_out": held_out})


def _held_out_of(train: int) -> int:
    """So many held-out tokens that they are the usual part of all."""
    return -(-train // (HELD_OUT_EVERY - 1))


def _check_hooks(config: HarvestConfig, lm, hook: str):
    """Raises BadInput for a hook point that the model does not have, before any text is read."""
    for name in (*config.hook, hook):
        architecture.parse(lm, name)


def _asked(config: HarvestConfig, inputs: RunInputs, sources: dict) -> Harvest:
    context = config.data.context
    whole = lambda tokens, source: min(-(-tokens // context), len(source)) * context
    train = len(sources["train"]) * context if config.tokens is None else config.tokens
    train = whole(train, sources["train"])
    held_out = _held_out_of(train) if config.held_out_tokens is None else config.held_out_tokens
    tokens = {"train": train, "held_out": whole(held_out, sources["held_out"]) if held_out else 0}
    special = {name: special_token(inputs.lm, name) for name in SPECIAL}
    return Harvest(
        lm=config.lm,
        process_weights=config.process_weights,
        lm_precision=config.lm_precision,
        lm_dtype=config.lm_dtype,
        hooks=config.hook or (inputs.hook,),
        context=context,
        dtype=config.dtype,
        shard_tokens=config.shard_tokens,
        seed=config.seed,
        text=tuple(config.data.text),
        fingerprints=inputs.fingerprints,
        special_tokens={name: token for name, token in special.items() if token is not None},
        tokens={split: count for split, count in tokens.items() if count},
    )


def _announce(asked: Harvest, inputs: RunInputs, out: str):
    width = sum(architecture.width(inputs.lm.config, hook) for hook in asked.hooks)
    size = sum(asked.tokens.values()) * (width * np.dtype(shards.DTYPES[asked.dtype]).itemsize + 4)
    counts = " and ".join(f"{tokens} {split.replace('_', '-')} tokens" for split, tokens in asked.tokens.items())
    print(f"jaxsae: {counts} at {', '.join(asked.hooks)}: {size / 1e9:.3g} GB in {out}", file=sys.stderr)
