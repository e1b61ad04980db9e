"""What a run works on: devices, a language model, data; opened for training and for evaluation alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from jaxsae import lm as lms
from jaxsae.data.activations import Source, TextSource
from jaxsae.data.config import DataConfig
from jaxsae.data.files import FileSource, fingerprint_of, open_shards
from jaxsae.data.tokens import TokenContexts, default_cache, prepare
from jaxsae.distributed.mesh import replicate
from jaxsae.distributed.processes import primary_first
from jaxsae.errors import BadInput
from jaxsae.lm.architecture import width
from jaxsae.lm.config import LMConfig

# Held-out contexts are taken in a shuffled order of their own, so that few of them come from many documents.
EVAL_SEED = 1


@dataclass(frozen=True)
class RunInputs:
    mesh: jax.sharding.Mesh
    width: int  # d of the activations
    fingerprint: str  # of text, tokenizer and model, or of the files of activations
    source: Callable[..., Source]  # (split, seed, skip_first=False) -> Source; seed None keeps the order of the data
    lm: lms.LM | None = None  # None if activations come from files
    hook: str | None = None

    @property
    def facts(self) -> dict:
        """What manifest.json says of the inputs, because the configuration leaves it open."""
        return {"hook": self.hook, "width": self.width, "data_fingerprint": self.fingerprint}


def open_inputs(
    lm: LMConfig,
    data: DataConfig,
    choose_mesh: Callable[[int], jax.sharding.Mesh],
    check: Callable[..., None] = lambda lm, hook: None,
) -> RunInputs:
    """Open a language model and text, or files of activations; `choose_mesh(d)` says on which mesh.

    `check(lm, hook)` is called with the language model's configuration, or None, before any text is read.

    Raises BadInput for a model or data that cannot be used.
    """
    open_them = _from_text if data.activations is None else _from_files
    return open_them(lm, data, choose_mesh, check)


def _from_files(lm: LMConfig, data: DataConfig, choose_mesh, check) -> RunInputs:
    check(None, "")
    cache = Path(data.cache or default_cache())

    def source(split: str, seed: int | None, skip_first: bool = False):
        del skip_first  # rows of files have no positions
        return primary_first(lambda: FileSource(data.activations, split, seed, cache))

    shards, d = open_shards(data.activations)
    # The hook is only noted: it says where the files come from.
    return RunInputs(choose_mesh(d), d, fingerprint_of(shards), source, None, lm.hook)


def _from_text(config: LMConfig, data: DataConfig, choose_mesh, check) -> RunInputs:
    lm = lms.load(config.lm, config.lm_precision)
    lm = lms.process_weights(lm) if config.process_weights else lm
    hook = config.hook or lms.default_hook(lm.config.n_layer)
    d = width(lm.config, hook)
    if data.context > lm.config.n_ctx:
        raise BadInput(
            f"--context is {data.context}, but {config.lm} has {lm.config.n_ctx} positions: give at most that"
        )
    check(lm.config, hook)
    mesh = choose_mesh(d)
    tokenise = partial(prepare, data.text, lms.load_tokenizer(lm), data.context)
    folder = primary_first(lambda: tokenise(data.cache, data.documents))
    fingerprint = f"{folder.name}-{lms.checksum(lm):08x}"
    lm = replicate(lm, mesh)

    def source(split: str, seed: int | None, skip_first: bool = False):
        return TextSource(lm, hook, TokenContexts(folder, split, seed), data.context, skip_first, fingerprint)

    return RunInputs(mesh, d, fingerprint, source, lm, hook)
