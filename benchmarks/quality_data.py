"""What quality.py trains and evaluates on: harvested activations, in the order in which jaxsae reads them.

C held-out contexts of T tokens, R held-out rows, d width, B rows of a batch.
"""

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxsae
from jaxsae import evals
from jaxsae import lm as lms
from jaxsae.cli import parse
from jaxsae.data import harvested
from jaxsae.data.activations import Source, TextSource
from jaxsae.data.config import DataConfig
from jaxsae.data.files import FileSource
from jaxsae.data.harvested import Harvest
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.evals.subject import Subject
from jaxsae.lm.place import on_mesh
from jaxsae.run.harvest import harvest
from jaxsae.run.harvest_config import HarvestConfig
from jaxsae.run.inputs import open_inputs, with_origin
from jaxsae.run.train import make_batches

# Rows that are reconstructed at once.
ROWS = 4096


def check(activations: str, tokens: int, batch_size: int) -> Harvest:
    """The index of a folder of harvested activations, DIR or DIR#HOOK. Raises BadInput if it is none, has no held-out
    part, or has fewer tokens for training than `tokens`, in whole batches.
    """
    index = harvested.find(Path(activations.partition("#")[0]))
    if index is None:
        raise BadInput(
            f"--activations {activations} is no folder that `jaxsae harvest` wrote: give one, or leave it out"
        )
    if not index.tokens.get("held_out"):
        raise BadInput(
            f"--activations {activations} has no held-out part: harvest it again without --held-out-tokens 0"
        )
    needed = -(-tokens // batch_size) * batch_size
    if needed > index.tokens["train"]:
        raise BadInput(
            f"--tokens is {tokens}, {needed} in whole batches, and {activations} has {index.tokens['train']} for "
            "training: give fewer"
        )
    return index


def harvest_embedded(out: Path, tokens: int, batch_size: int) -> str:
    """Activations of the embedded model on the standard library's source files, in `out`; goes on if it was stopped."""
    # Training reads whole chunks: so none holds a row twice.
    chunk = DataConfig().buffer_batches * batch_size
    harvest(HarvestConfig(str(out), tokens=-(-tokens // chunk) * chunk, dtype="bfloat16"))
    return str(out)


@dataclass(frozen=True)
class HeldOut:
    """Token ids [C, T] as a TextSource reads them, padding is -1."""

    ids: np.ndarray
    order_name: str = "held out"

    @property
    def padded(self) -> bool:
        return bool((self.ids < 0).any())

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop].astype(np.int32)


@dataclass(frozen=True)
class Data:
    width: int
    hook: str
    mesh: jax.sharding.Mesh
    held_out: np.ndarray  # [R, d]
    source: TextSource | None  # of the same contexts; None without the language model


def opened(activations: str, flags: list[str], rows: Path | None, eval_tokens: int) -> Data:
    """Open the held-out part, so many tokens of it. What `jaxsae train` with these flags trains on is written into the
    file `rows`, [steps B, d], if one is given that is not there yet.
    """
    config = with_origin(parse(["train", *flags])[0].settings)
    mesh = make_mesh(1, 1)
    inputs = open_inputs(config.lm, config.data, lambda d: mesh)
    training = config.training
    if rows is not None and not rows.exists():
        batches = make_batches(config, mesh, inputs.source("train", training.batch.order_seed))
        _write(rows, batches.iterate(0, training.steps), training.steps, training.batch.batch_size, inputs.width)
    source = inputs.source("held_out", None)
    contexts = max(1, min(len(source), eval_tokens // source.rows))
    index = harvested.find(Path(activations.partition("#")[0]))
    text = _text_source(index, inputs.hook, _held_out_ids(source)[:contexts], mesh)
    return Data(inputs.width, inputs.hook, mesh, _held_out_rows(source, contexts), text)


def _write(path: Path, batches: Iterator, steps: int, size: int, width: int):
    part = path.with_suffix(".part")
    array = np.lib.format.open_memmap(part, "w+", np.float32, (steps * size, width))
    for number, (batch,) in enumerate(batches):
        array[number * size : (number + 1) * size] = np.asarray(batch)
    array.flush()
    # Last: a file without this name was left behind by a run that stopped half-way.
    part.rename(path)


def _held_out_rows(source: Source, contexts: int) -> np.ndarray:
    rows = source.host(0, contexts).reshape(-1, source.width)
    return rows[~np.isnan(rows[:, 0])]


def _held_out_ids(source: FileSource) -> np.ndarray:
    files = source.files
    ids = [shard.ids(0, shard.rows).reshape(-1, source.rows) for shard in files.shards]
    return np.concatenate([own[len(own) - held :] for own, held in zip(ids, files.held)])


def _text_source(index: Harvest, hook: str, ids: np.ndarray, mesh: jax.sharding.Mesh) -> TextSource | None:
    """The held-out contexts, read by the language model; None if it is not found, or is another one."""
    try:
        lm = lms.open_model(index.lm, index.lm_precision)
    except BadInput as reason:
        print(f"without a language model, and so without delta CE: {reason}", file=sys.stderr)
        return None
    if f"{lms.checksum(lm):08x}" != index.fingerprints.get("model"):
        print(f"{index.lm} is not the model that was harvested: without delta CE", file=sys.stderr)
        return None
    if index.process_weights:
        lm = lms.process_weights(lms.on_device(lm))
        lm = dataclasses.replace(lm, params=jax.tree.map(np.asarray, lm.params))
    lm = on_mesh(lm, mesh, index.lm_dtype)
    return TextSource(lm, hook, HeldOut(ids), index.context, False, "")


def reconstructed(sae: jaxsae.SAE, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(xhat [R, d], how many latents fired [R, n] summed to [n]) of rows x [R, d]."""
    xhat, fired = np.empty_like(x), np.zeros(sae.n, np.int64)
    for start in range(0, len(x), ROWS):
        code = jaxsae.encode(sae, x[start : start + ROWS])
        xhat[start : start + ROWS] = jaxsae.decode(sae, code)
        np.add.at(fired, np.asarray(code.indices)[np.asarray(code.values) > 0], 1)
    return xhat, fired


def unexplained(x: np.ndarray, xhat: np.ndarray) -> float:
    """E||x - xhat||^2 / E||x - E x||^2 of rows x and xhat [R, d], in float64."""
    x, xhat = x.astype(np.float64), xhat.astype(np.float64)
    return float(((x - xhat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def measured(saved: str | Path, data: Data) -> dict:
    """The metrics of a saved autoencoder on held-out activations, in their own units; delta CE and KL are None without
    a language model. Raises BadInput if it cannot be read, as where its training diverged.

    fvu     share of the variance of the activations that the reconstruction misses
    nmse    the same after the mean over the d channels is taken from each activation and each reconstruction
    """
    x = data.held_out
    xhat, fired = reconstructed(jaxsae.load(saved), x)
    centred = partial(np.subtract, dtype=np.float64)
    of_channels = lambda a: centred(a, a.mean(1, keepdims=True, dtype=np.float64))
    metrics = {
        "fvu": unexplained(x, xhat),
        "nmse": unexplained(of_channels(x), of_channels(xhat)),
        "l0": float(fired.sum() / len(x)),
        "dead": float((fired == 0).mean()),
    }
    names = ("delta_ce", "kl", "ce_recovered")
    if data.source is None:
        return metrics | dict.fromkeys(names)
    sae = jaxsae.load(saved, mesh=data.mesh)
    subject = Subject(sae, data.source, data.mesh, lm=data.source.lm, hook=data.source.hook, quiet=True)
    standard = evals.measure("standard", dataclasses.replace(subject, facts={"mse_scale": None}))
    return metrics | {name: standard[name] for name in names} | {"fvu_of_text": standard["fvu"]}


def difference(saved: str | Path, rows: Path, theirs: Path) -> float:
    """||ours - theirs|| / ||theirs||, of what jaxsae and the library itself make of the same rows."""
    ours, theirs = reconstructed(jaxsae.load(saved), np.load(rows))[0], np.load(theirs)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
