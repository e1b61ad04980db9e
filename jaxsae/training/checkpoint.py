"""Checkpoints of a run, by Orbax: written in the background, the newest few kept, checked when read.

Each holds `weights` (parameters and their average), `optimizer` and `rest` separately, so that weights can be read
alone, and a checksum of every array: storage formats notice most damage, not all. Where a run has several processes,
each writes and reads what its own devices hold, and they agree on which checkpoint is whole.
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxsae import processes
from jaxsae.errors import BadInput
from jaxsae.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for what is being written.

    `tidy` removes what an interrupted save left; only the process that trains may do that.
    """

    def __init__(self, folder: Path, keep: int, tidy: bool = True):
        from orbax.checkpoint import v1 as ocp

        self.folder = folder.absolute()
        self._tidy = tidy
        self._keep = ocp.training.preservation_policies.LatestN(keep)
        self._ocp = ocp
        self._checkpointer = None

    def __enter__(self):
        self._checkpointer = self._ocp.training.Checkpointer(
            self.folder,
            # Every save that is asked for is made.
            save_decision_policy=self._ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._keep,
            cleanup_tmp_directories=self._tidy,
        )
        return self

    def __exit__(self, kind, error, traceback):
        if not processes.is_loss(error):  # a save that is under way would wait for the process that is gone
            self._checkpointer.close()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def save(self, state: TrainState):
        """Start writing the checkpoint of `state`; one that is there for this step (a damaged one) is replaced."""
        step = int(state.step)
        with jax.set_mesh(state.idle.sharding.mesh):
            sums = [int(s) for s in _checksums(state)]
        self._checkpointer.save_checkpointables_async(
            step, {**_split(state), "checksums": sums}, force=True, overwrite=step in self.steps()
        )

    def wait(self):
        """Until everything is on disk."""
        self._checkpointer.wait()

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest checkpoint that is whole, laid out as `like` (arrays or their shapes and shardings).

        Without its optimizer, which is not read then, where that of `like` is None. None where there is no checkpoint
        at all. A damaged one is named on stderr and the one before it taken; BadInput where all are damaged.
        """
        steps = self.steps()
        say = lambda text: print(text, file=sys.stderr) if processes.is_first() else None
        for step in reversed(steps):
            state, damage = self._read(step, like)
            if damage:
                say(f"the checkpoint of step {step} in {self.folder} is damaged ({damage})")
                continue
            if step != steps[-1]:
                say(f"going on from the checkpoint of step {step}")
            return state
        if steps:
            raise BadInput(
                f"none of the checkpoints {', '.join(map(str, steps))} in {self.folder} can be read: "
                "bring back a copy of one, or start another --run"
            )
        return None

    def _read(self, step: int, like: TrainState) -> tuple[TrainState | None, str]:
        """(state, "") of a whole checkpoint, (None, what is wrong with it) of a damaged one, the same everywhere."""
        wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _split(like))
        parts, damage = processes.on_each(lambda: self._load(step, {**wanted, "checksums": None}))
        said = processes.exchange(damage)
        if any(said):
            return None, next(filter(None, said))
        state = replace(like, **parts["weights"], **parts.get("optimizer", {}), **parts["rest"])
        with jax.set_mesh(state.idle.sharding.mesh):
            sums = [int(s) for s in _checksums(state)]
        first = len(jax.tree.leaves(state.params))
        # Those of the parameters, and those behind the optimizer where that was left out.
        saved = parts["checksums"][:first] + parts["checksums"][first - len(sums) :]
        same = sums == saved
        return (state, "") if same else (None, "its numbers do not have the checksums that were saved with them")

    def _load(self, step: int, wanted: dict) -> tuple[dict | None, str]:
        """(what is wanted of a checkpoint, ""), or (None, what is wrong with its files) as this process sees them."""
        alone = self._ocp.Context()
        # By default a process would wait here for one that has found damage and gone on.
        alone.multiprocessing.primary_host = jax.process_index()
        alone.multiprocessing.active_processes = {jax.process_index()}
        try:
            with alone:
                return self._ocp.load_checkpointables(self.folder / str(step), wanted), ""
        except (jax.errors.JaxRuntimeError, MemoryError, PermissionError):
            raise  # no room or no right to read it here says nothing about the files
        except Exception as error:  # Orbax, tensorstore and JSON each raise their own for damaged files
            return None, str(error).strip().split("\n")[0][:200] or type(error).__name__


def _split(state: TrainState) -> dict:
    optimizer = {} if state.opt is None else {"optimizer": {"opt": state.opt}}
    return {
        "weights": {"params": state.params, "ema": state.ema},
        **optimizer,
        "rest": {"idle": state.idle, "mse_scale": state.mse_scale, "key": state.key, "step": state.step},
    }


@jax.jit
def _checksums(state: TrainState):
    """The bits of each array as integers, summed modulo 2^32: the same on every mesh."""

    def checksum(a):
        a = jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[a.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(a, width).astype(jnp.uint32)
        return jnp.sum(bits, dtype=jnp.uint32)

    return [checksum(a) for a in jax.tree.leaves(state)]
