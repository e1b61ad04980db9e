"""One run from its configuration: open what it works on, train, export, evaluate, summarise."""

import dataclasses
import sys
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax

from jaxsae.config import Config, fields_of
from jaxsae.data.activations import ActivationBatches, BufferPlan, Source
from jaxsae.data.contexts import ContextBatches
from jaxsae.distributed import processes
from jaxsae.interop import native
from jaxsae.run import checks, places
from jaxsae.run import folder as folders
from jaxsae.run.compiled import keep_compiled
from jaxsae.run.evaluate import measure_state
from jaxsae.run.folder import SUMMARY
from jaxsae.run.inputs import RunInputs, open_inputs, with_origin
from jaxsae.run.plot import plot
from jaxsae.run.record import about, amount_read
from jaxsae.run.saved import load
from jaxsae.sae import activation_functions
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.export import exported
from jaxsae.training.logs import METRICS, Logs, read_metrics
from jaxsae.training.loop import train as train_loop
from jaxsae.training.program import Program, make_program
from jaxsae.training.step import TrainState

# A text that is read more often teaches an autoencoder its own tokens.
MANY_TIMES = 4


def started(config: Config) -> Config:
    """Join the other processes of the run if there are some; returns `config` with the run folder named.

    Compiled programs are kept for later runs (compiled.py).
    """
    processes.start(config.distributed)
    keep_compiled(config.data.cache)
    config = processes.on_all(partial(with_origin, config))
    return dataclasses.replace(config, run=config.run or folders.default_folder(config))


def train(config: Config, asked: Collection[str] = ()) -> dict:
    """Train, export, evaluate: the whole run folder; returns its summary. Raises BadInput, Interrupted or Diverged.

    `config` comes from `started`, or names its run folder. With several processes, all of them call this and the
    primary one writes. Training that starts from an autoencoder is refused on other data than its own under the same
    name, but for the fields in `asked`: text, lm, activations.
    """
    folder = Path(config.run)
    with folders.written_by_this_run(folder, config):
        return _train(folder, config, asked)


def _train(folder: Path, config: Config, asked: Collection[str]) -> dict:
    training = config.training
    checks.check_before_opening(folder, config)
    choose_mesh, check = partial(checks.training_mesh, config), partial(checks.check_objective, config)
    check_identity = partial(checks.check_identity, folder, config, asked)
    need = {"train": training.batch.tokens, "held_out": config.eval_tokens}
    inputs = processes.on_all(partial(open_inputs, config.lm, config.data, choose_mesh, check, check_identity, need))
    source = inputs.source("train", training.batch.seed)
    checks.check_data(folder, config, source)
    lm = inputs.lm if training.type.reads == "contexts" else None
    program = processes.on_all(
        lambda: make_program(config.sae, training, inputs.width, lm and lm.config, inputs.hook or "")
    )
    batches = make_batches(config, inputs.mesh, source)
    read = _amount_read(source, training.batch.tokens)
    folders.write_facts(folder, config, inputs.mesh, inputs.facts | read | {"data_order": source.order_name})
    processes.on_primary(partial(places.remember, config, inputs.fingerprints))

    def step(state: TrainState, batch, number: int):
        with jax.set_mesh(inputs.mesh):
            return processes.one_by_one(program.train_step(state, batch, number, lm))

    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.log.keep_checkpoints))
        state = checkpoints.restore(program.abstract_state(inputs.mesh))
        if state is None:
            state = _first_state(config, inputs, program, batches)
        start = int(state.step)
        counts = activation_functions.get(config.sae.activation).counts
        logs = stack.enter_context(Logs(folder, config.log, start, fields_of(config), counts))
        stream, size = batches.iterate(start, training.steps), training.batch.batch_size
        state, seconds = train_loop(state, stream, step, training.steps, size, checkpoints, logs, config.log)
    if seconds:
        rate = (training.steps - start) * size / seconds
    else:  # trained before: what its summary says, or the last row of its log if a kill came before the summary
        rows = read_metrics(folder / METRICS) or [{}]
        rate = folders.read(folder / SUMMARY).get("tokens_per_second", rows[-1].get("tokens_per_second"))
    return _finish(folder, config, inputs, state, rate, read)


def _amount_read(source: Source, tokens: int) -> dict:
    """How many tokens there are to train on, and how often each is read; said on stderr too."""
    read = {"data_tokens": source.count, "times_read": tokens / source.count}
    if processes.is_primary():
        print(f"jaxsae: {amount_read(**read)}", file=sys.stderr)
        if read["times_read"] > MANY_TIMES:
            print(f"jaxsae: that is more than {MANY_TIMES} times: give more --text, or fewer --tokens", file=sys.stderr)
    return read


def make_batches(config: Config, mesh: jax.sharding.Mesh, source) -> ActivationBatches | ContextBatches:
    """Rows of activations, or whole contexts if the objective runs the language model after the autoencoder."""
    size = config.training.batch.batch_size
    if config.training.type.reads == "contexts":
        return ContextBatches(source, size // source.rows, mesh)
    plan = BufferPlan.of(size, source.count / len(source), mesh.shape["data"], config.data.buffer_batches)
    return ActivationBatches(source, plan, mesh, config.training.batch.seed)


def _first_state(config: Config, inputs: RunInputs, program: Program, batches) -> TrainState:
    if processes.is_primary():
        print("jaxsae: compiling, and computing the first activations", file=sys.stderr)
    path = config.training.init_from
    return program.first_state(batches, inputs.mesh, load(path, inputs.mesh) if path else None)


def _finish(folder: Path, config: Config, inputs: RunInputs, state: TrainState, rate: float | None, read: dict) -> dict:
    """Export, evaluate, summarise and draw a trained state."""
    with jax.set_mesh(inputs.mesh):
        sae = exported(state, config.training.ema_decay())
    summary = measure_state(config, inputs, state, sae, config.eval_tokens)
    summary |= {"tokens_per_second": rate, **read}
    native.save(sae, folder / "sae", about(config, inputs.facts, float(state.mse_scale), summary))

    def summarise():
        folders.write(folder / SUMMARY, summary)
        where = f"{config.lm.lm} {inputs.hook}" if inputs.lm else config.data.activations
        title = f"{config.sae.activation}, n {config.sae.n}, k {config.sae.k}, {where}"
        plot(folder / METRICS, folder / "training.png", title)

    processes.on_primary(summarise)
    return summary
