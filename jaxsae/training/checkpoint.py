"""Checkpoints of a run, by Orbax: written in the background, the newest few kept, checked when read.

Each holds `weights` (parameters and their average), `optimizer` and `rest` separately, so that weights can be read
alone, and a checksum of every array: storage formats notice most damage, not all. Where a run has several processes,
each writes and reads what its own devices hold, and they agree on which checkpoint is whole.
"""

import re
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.sae.types import SAE
from jaxsae.training.step import TrainState

# The version of a checkpoint: 2 has its checksums by name.
FORMAT = 2
# Orbax's name for a checkpoint that is being written. Its own tidying takes every folder with this inside its name.
UNFINISHED = re.compile(r"\d+\.orbax-checkpoint-tmp(-\d+)?")


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for what is being written.

    `tidy` removes what an interrupted save left, and nothing else; only the process that trains may do that.
    """

    def __init__(self, folder: Path, keep: int, tidy: bool = True):
        from orbax.checkpoint import v1 as ocp

        self.folder = folder.absolute()
        self._tidy = tidy
        self._keep = ocp.training.preservation_policies.LatestN(keep)
        self._ocp = ocp
        self._checkpointer = None

    def __enter__(self):
        if self._tidy and processes.is_primary():
            self._remove_unfinished()
        self._checkpointer = self._ocp.training.Checkpointer(
            self.folder,
            # Every save that is asked for is made.
            save_decision_policy=self._ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._keep,
        )
        return self

    def __exit__(self, kind, error, traceback):
        if not processes.is_peer_failure(error):  # a save that is under way would wait for the process that is gone
            self._checkpointer.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def widths(self) -> tuple[int, int | None]:
        """(d of the activations, of a transcoder the width of its output) that the newest checkpoint that can be read
        is for. Raises BadInput if none can.
        """
        for step in reversed(self.steps()):
            try:
                weights = self._ocp.checkpointables_metadata(self.folder / str(step)).metadata["weights"]["params"]
                d_out = weights["b_dec"].shape[0] if "scale_out" in weights else None
                return weights["W_enc"].shape[1], d_out
            except Exception:  # damaged in one of many ways; `restore` says in which
                continue
        raise BadInput(f"none of the checkpoints in {self.folder} can be read: bring back a copy of one")

    def save(self, state: TrainState):
        """Start writing the checkpoint of `state`; one that is there for this step (a damaged one) is replaced."""
        step = int(state.step)
        facts = {"format": FORMAT, "checksums": _checksums(state)}
        self._checkpointer.save_checkpointables_async(
            step, {**_split(state), "facts": facts}, force=True, overwrite=step in self.steps()
        )

    def drop(self, step: int):
        """Remove the checkpoint of `step`, whose weights have turned out to be of no use, if there are others too."""
        self.wait()
        if step in self.steps() and len(self.steps()) > 1:
            self._checkpointer.delete(step)

    def wait(self):
        """Until everything is on disk."""
        self._checkpointer.wait()

    def restore(self, like: TrainState, step: int | None = None) -> TrainState | None:
        """The newest checkpoint that is whole, or that of `step`, laid out as `like` (arrays or shapes and shardings).

        Without its optimizer, which is then not read, if that of `like` is None. None if there is no checkpoint at all.
        A damaged one is named on stderr and the one before it taken. Raises BadInput if all are damaged, if there is
        none of `step`, or if another version of jaxsae wrote them in a form that this one does not know.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise BadInput(f"{self.folder} has no checkpoint of step {step}: there are {there}")
        say = lambda text: print(text, file=sys.stderr) if processes.is_primary() else None
        candidates = steps if step is None else [step]
        for number in reversed(candidates):
            state, damage = self._read(number, like)
            if damage:
                say(f"the checkpoint of step {number} in {self.folder} is damaged ({damage})")
                continue
            if number != candidates[-1]:
                say(f"the checkpoint of step {number} is taken")
            return state
        if steps:
            raise BadInput(
                f"none of the checkpoints {', '.join(map(str, candidates))} in {self.folder} can be read: "
                "bring back a copy of one, or start another --run"
            )
        return None

    def _remove_unfinished(self):
        for path in self.folder.glob("*"):
            if UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)

    def _read(self, step: int, like: TrainState) -> tuple[TrainState | None, str]:
        """(state, "") of a whole checkpoint, (None, what is wrong with it) of a damaged one, the same everywhere."""
        arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _split(like))
        parts, damage = processes.on_all(lambda: self._load(step, arrays))
        if damage := next(filter(None, processes.exchange(damage)), ""):
            return None, damage
        state = _joined(like, parts)
        saved, sums = parts["facts"]["checksums"], _checksums(state)
        if isinstance(saved, list):
            # Format 1 has no names: the parameters come first, and the optimizer, which may be left out, after them.
            first = len(jax.tree.leaves(state.params))
            saved = dict(zip(sums, saved[:first] + saved[first - len(sums) :]))
        same = all(saved.get(name) == value for name, value in sums.items())
        return (state, "") if same else (None, "its numbers do not have the checksums that were saved with them")

    def _load(self, step: int, arrays: dict) -> tuple[dict | None, str]:
        """(the parts of a checkpoint, ""), or (None, what is wrong with its files) as this process sees them."""
        alone = self._ocp.Context()
        # By default a process would wait here for one that has found damage and gone on.
        alone.multiprocessing.primary_host = jax.process_index()
        alone.multiprocessing.active_processes = {jax.process_index()}
        folder = self.folder / str(step)
        try:
            with alone:
                facts = self._facts(folder)
                self._check_structure(folder, arrays)
                return self._ocp.load_checkpointables(folder, arrays) | {"facts": facts}, ""
        except (jax.errors.JaxRuntimeError, MemoryError, PermissionError, BadInput):
            raise  # no room or no right to read it here says nothing about the files
        except Exception as error:  # Orbax, tensorstore and JSON each raise their own for damaged files
            return None, str(error).strip().split("\n")[0][:200] or type(error).__name__

    def _facts(self, folder: Path) -> dict:
        """The format and the checksums of a checkpoint. Raises BadInput if a newer version wrote it."""
        if (folder / "facts").exists():
            facts = self._ocp.load_checkpointables(folder, {"facts": None})["facts"]
        else:
            facts = {"format": 1, **self._ocp.load_checkpointables(folder, {"checksums": None})}
        if facts["format"] > FORMAT:
            raise BadInput(
                f"{folder} has format {facts['format']}, and this jaxsae reads up to {FORMAT}: it was written by a "
                "newer version, so install that"
            )
        return facts

    def _check_structure(self, folder: Path, arrays: dict):
        """Raises BadInput if the checkpoint holds other arrays than are asked for, OSError if they cannot be read."""
        metadata = self._ocp.checkpointables_metadata(folder).metadata
        for part, tree in arrays.items():
            if metadata.get(part) is None:
                raise OSError(f"its {part} cannot be read")
            saved, asked = _shapes(metadata[part]), _shapes(tree)
            if saved != asked:
                name = next(name for name in {**asked, **saved} if saved.get(name) != asked.get(name))
                raise BadInput(
                    f"{folder} has {name} of shape {saved.get(name)}, not {asked.get(name)}: it was written by another "
                    "version of jaxsae, or for another configuration; resume it with that version, or export it there "
                    "and start from the export with --init-from"
                )


def _split(state: TrainState) -> dict:
    """What is saved as one each: weights, the optimizer (if there is one), and the rest."""
    optimizer = {} if state.opt is None else {"optimizer": {"opt": state.opt}}
    parts = {
        "weights": {"params": state.params, "ema": state.ema},
        **optimizer,
        "rest": {"idle": state.idle, "mse_scale": state.mse_scale, "key": state.key, "step": state.step},
    }
    # Orbax takes no dataclass that has a field without an array: what is absent is left out.
    arrays = lambda sae: {f.name: getattr(sae, f.name) for f in fields(sae) if f.name != "spec"}
    present = lambda sae: {name: value for name, value in arrays(sae).items() if value is not None}
    return jax.tree.map(lambda leaf: present(leaf) if _is_sae(leaf) else leaf, parts, is_leaf=_is_sae)


def _joined(like: TrainState, parts: dict) -> TrainState:
    """The inverse of `_split`, in the structure of `like`."""
    structure = {"params": like.params, "ema": like.ema, "opt": like.opt}
    arrays = {**parts["weights"], **parts.get("optimizer", {"opt": None})}
    put = lambda leaf, saved: leaf.replace(**saved) if _is_sae(leaf) else saved
    return replace(like, **jax.tree.map(put, structure, arrays, is_leaf=_is_sae), **parts["rest"])


def _is_sae(leaf) -> bool:
    return isinstance(leaf, SAE)


def _checksums(state: TrainState) -> dict[str, int]:
    """{path of an array: the sum of its bits as integers, modulo 2^32}, the same on every mesh."""
    with jax.set_mesh(state.idle.sharding.mesh):
        sums = jax.device_get(_sums(state))
    return {_name(path): int(value) for path, value in jax.tree.leaves_with_path(sums)}


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="-")


def _shapes(tree) -> dict[str, tuple]:
    """{path of an array: its shape}, of arrays or of what Orbax says of them."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    shape = lambda leaf: jax.eval_shape(jax.random.key_data, leaf).shape if is_key(leaf) else leaf.shape
    return {_name(path): tuple(shape(leaf)) for path, leaf in jax.tree.leaves_with_path(tree)}


@jax.jit
def _sums(state: TrainState):
    def checksum(a):
        a = jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[a.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(a, width).astype(jnp.uint32)
        return jnp.sum(bits, dtype=jnp.uint32)

    return jax.tree.map(checksum, state)
