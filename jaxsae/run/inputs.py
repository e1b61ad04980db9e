"""What a run works on: devices, a language model, data; opened for training and for evaluation alike."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsae import lm as lms
from jaxsae.config import Config, with_fields
from jaxsae.data import text
from jaxsae.data.activations import HooksSource, Source, TextSource
from jaxsae.data.arrays.folder import open_shards, origin_of
from jaxsae.data.arrays.opened import open_files
from jaxsae.data.config import DataConfig, is_synthetic
from jaxsae.data.files import FileSource
from jaxsae.data.sections import SectionsSource
from jaxsae.data.synthetic import SyntheticSource, world_of
from jaxsae.data.tokens import Prepared, TokenContexts, default_cache, open_text, tokenised
from jaxsae.distributed.processes import is_primary, on_primary, primary_first
from jaxsae.errors import BadInput
from jaxsae.lm.architecture import check_order, width
from jaxsae.lm.config import LMConfig
from jaxsae.lm.place import on_mesh
from jaxsae.run import identity

# Held-out contexts are taken in a shuffled order of their own, so that few of them come from many documents.
EVAL_SEED = 1


@dataclass(frozen=True)
class RunInputs:
    mesh: jax.sharding.Mesh
    width: int  # d of the activations
    fingerprints: dict[str, str]  # of text, tokenizer and model, or of activations, by what they hold
    source: Callable[..., Source]  # (split, seed) -> Source; seed None keeps the order of the data
    lm: lms.LM | None = None  # None if activations come from files
    hook: str | tuple[str, ...] | None = None
    hook_out: str | None = None  # of a transcoder, whose output has the width `width_out`
    width_out: int | None = None
    lm_name: str | None = None  # of the language model that activations are of, as --lm names it, if that is known
    data: Mapping[str, Any] = field(default_factory=dict)  # what is known of the text, or of the rows of files
    source_at: Callable[..., Source] | None = None  # (hooks, split, seed) -> Source at hook points of `lm`

    def at(self, hook: str | None) -> "RunInputs":
        """The same at another hook point of the language model; None: as it is."""
        if hook in (None, self.hook):
            return self
        source = partial(self.source_at, (hook,))
        return dataclasses.replace(self, hook=hook, width=width(self.lm.config, hook), source=source)

    @property
    def facts(self) -> dict:
        """What manifest.json says of the inputs, because the configuration leaves it open."""
        facts = {"hook": self.hook, "width": self.width, "fingerprints": self.fingerprints, "lm": self.lm_name}
        facts |= {} if self.hook_out is None else {"hook_out": self.hook_out}
        return facts | self.data


def with_origin(config: Config) -> Config:
    """`config` with the language model, hook points and context length that harvested activations are of.

    Other activations, and text, leave it as it is. A hook point or a language model that is given stays.
    """
    where = config.data.activations
    origin = None if where is None or is_synthetic(where) else origin_of(open_shards(where, out=config.lm.hook_out)[0])
    if not origin:
        return config
    default = LMConfig()
    given = {"hook": config.lm.hook, "lm": config.lm.lm if config.lm.lm != default.lm else None}
    return with_fields(config, **origin | {name: value for name, value in given.items() if value is not None})


def open_inputs(
    lm: LMConfig,
    data: DataConfig,
    choose_mesh: Callable[[int], jax.sharding.Mesh],
    check: Callable[..., None] = lambda lm, hook: None,
    check_identity: Callable[[dict[str, str]], None] = lambda fingerprints: None,
    need: Mapping[str, int | None] | None = None,
) -> RunInputs:
    """Open a language model and text, or files of activations; `choose_mesh(d)` says on which mesh.

    `check(lm, hook)` is called with the language model's configuration, or None, before any text is read,
    `check_identity(fingerprints)` before any is tokenised. `need` says how many tokens are read of which part of the
    text, {split: tokens, or None for all}; it is tokenised so far.

    Raises BadInput for a model or data that cannot be used.
    """
    if is_synthetic(data.activations):
        return _from_world(data, choose_mesh, check, check_identity)
    if data.activations is not None:
        return _from_files(lm, data, choose_mesh, check, check_identity)
    return _from_text(lm, data, choose_mesh, check, check_identity, need)


def _from_world(data: DataConfig, choose_mesh, check, check_identity) -> RunInputs:
    if data.skip_tokens:
        raise BadInput("--skip-tokens leaves out tokens of text, and synthetic activations have none: leave it out")
    check(None, "")
    world = world_of(data.activations)
    source = lambda split, seed: SyntheticSource(world, split, seed)
    fingerprints = {"activations": source("train", None).fingerprint}
    check_identity(fingerprints)
    return RunInputs(choose_mesh(world.width), world.width, fingerprints, source)


def _from_files(lm: LMConfig, data: DataConfig, choose_mesh, check, check_identity) -> RunInputs:
    check(None, "")
    cache = Path(data.cache or default_cache())
    files = primary_first(lambda: open_files(data.activations, data.held_out, data.max_norm, cache, lm.hook_out))
    origin = files.origin or {"hook": lm.hook}
    if lm.hook not in (None, origin["hook"]):
        raise BadInput(f"--hook is {lm.hook}, but {data.activations} holds activations of {origin['hook']}: give that")
    if is_primary():
        for line in files.summary().splitlines():
            print(f"jaxsae: {line}", file=sys.stderr)
    skip = files.token_ids(data.skip_tokens)

    def source(split: str, seed: int | None):
        return FileSource(files, split, seed, skip, data.skip_first)

    fingerprints = {"activations": files.fingerprint}
    check_identity(fingerprints)
    return RunInputs(
        choose_mesh(files.width),
        files.width,
        fingerprints,
        source,
        hook=origin["hook"],
        hook_out=lm.hook_out,
        width_out=files.width_out,
        lm_name=origin.get("lm"),
        data={"activations": files.facts},
    )


def _from_text(config: LMConfig, data: DataConfig, choose_mesh, check, check_identity, need) -> RunInputs:
    lm = lms.open_model(config.lm, config.lm_precision)
    # Before the weights are processed, which rounds them differently on other devices.
    weights = _checksum(lm, config.lm_shard)
    lm = _processed(lm, config.lm_shard) if config.process_weights else lm
    hook = config.hook or lms.default_hook(lm.config.n_layer)
    hooks = (hook,) if isinstance(hook, str) else hook
    widths = {width(lm.config, name) for name in hooks}
    if len(widths) > 1:
        raise BadInput(f"--hook {' '.join(hooks)}: the activations have widths {widths}, give hook points of one width")
    d, d_out = len(hooks) * widths.pop(), None
    if config.hook_out is not None:
        check_order(lm.config, hook, config.hook_out)
        d_out = width(lm.config, config.hook_out)
    if data.context > lm.config.n_ctx:
        raise BadInput(
            f"--context is {data.context}, but {config.lm} has {lm.config.n_ctx} positions: give at most that"
        )
    check(lm.config, hook)
    skip = lms.token_ids(lm, data.skip_tokens)
    mesh = choose_mesh(d)
    prepared = text_of(data, partial(lms.load_tokenizer, lm), lm.config.vocab_size, need)
    fingerprints = {"text": identity.short(prepared.text.fingerprint), "model": weights}
    if tokenizer := prepared.text.tokenizer:
        fingerprints["tokenizer"] = identity.digest(f"{tokenizer.fingerprint()} {tokenizer.end_of_text}")
    check_identity(fingerprints)
    primary_first(lambda: tokenised(prepared))
    fingerprint = f"{prepared.fingerprint}-{weights}"
    lm = on_mesh(lm, mesh, config.lm_dtype, config.lm_shard)

    def source_at(hooks: tuple[str, ...], split: str, seed: int | None, kind: type = HooksSource):
        contexts = primary_first(lambda: TokenContexts(prepared, split, seed))
        rest = contexts, data.context, data.skip_first, fingerprint, skip
        return TextSource(lm, *hooks, *rest) if len(hooks) == 1 else kind(lm, hooks, *rest)

    if config.hook_out is not None:
        source = partial(source_at, (hook, config.hook_out))
    else:
        source = partial(source_at, hooks, kind=SectionsSource)
    rest = config.lm, prepared.facts, source_at
    return RunInputs(mesh, d, fingerprints, source, lm, hook, config.hook_out, d_out, *rest)


def _checksum(lm: lms.LM, shard: bool) -> str:
    """The fingerprint of the weights. If they are split, one process reads all of them, and the others their parts."""
    checksum = lambda: f"{lms.checksum(lm):08x}"
    return on_primary(checksum) if shard else checksum()


def _processed(lm: lms.LM, shard: bool) -> lms.LM:
    """The model with its weights processed, by the CPU if a device cannot hold it."""
    with jax.default_device(jax.local_devices(backend="cpu")[0] if shard else None):
        lm = lms.process_weights(lms.on_device(lm))
    return replace(lm, params=jax.tree.map(np.asarray, lm.params))


def text_of(
    data: DataConfig, load_tokenizer: Callable, vocab_size: int, need: Mapping[str, int | None] | None
) -> Prepared:
    """The text of `data`, not tokenised yet. Token ids do without a tokenizer, but for --bos."""
    tokenizer = load_tokenizer() if data.bos or not text.are_ids(data.text) else None
    if need is not None and data.skip_first:
        # The first position of each context is read, and does not count.
        need = {split: tokens and tokens * data.context // (data.context - 1) + 1 for split, tokens in need.items()}
    return open_text(
        data.text,
        tokenizer,
        data.context,
        data.cache,
        data.documents,
        need,
        vocab_size=vocab_size,
        bos=data.bos,
        pack=data.pack,
        processes=data.data_processes,
        bad_documents=data.bad_documents,
    )
