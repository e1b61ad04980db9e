"""Runs from their configuration: open what they work on, train, export, evaluate, summarise.

One run is the usual case. Several that read the same activations are trained side by side (together.py says which
can be): each has a folder of its own, as if it had been alone.
"""

import dataclasses
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import jax

from jaxsae.config import Config, fields_of, without_effect
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
from jaxsae.run.runs import NoneLeft, Runs
from jaxsae.run.saved import load
from jaxsae.sae import activation_functions
from jaxsae.sae.fold import log_thresholds
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.export import exported
from jaxsae.training.init_state import SAMPLE
from jaxsae.training.logs import METRICS, Logs, read_metrics
from jaxsae.training.loop import Member
from jaxsae.training.loop import train as train_loop
from jaxsae.training.program import Program
from jaxsae.training.stacked import Site, make_programs
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


def say_without_effect(configs: Sequence[Config], flags: Collection[str]):
    """Name those of the typed `flags` that change nothing in any of these runs, each with the reason in the first."""
    notes = [{note.split()[0]: note for note in without_effect(config, flags)} for config in configs]
    if processes.is_primary():
        for flag, note in notes[0].items():
            if all(flag in others for others in notes):
                print(f"jaxsae: {note}", file=sys.stderr)


def train(config: Config, asked: Collection[str] = ()) -> dict:
    """Train, export, evaluate: the whole run folder; returns its summary. Raises BadInput, Interrupted or Diverged.

    `config` comes from `started`, or names its run folder. With several processes, all of them call this and the
    primary one writes. Training that starts from an autoencoder is refused on other data than its own under the same
    name, but for the fields in `asked`: text, lm, activations.
    """
    with folders.written_by_this_run(Path(config.run), config):
        runs = Runs({config.run: config}, raises=True)
        train_runs(runs, asked)
        return runs.outcomes[config.run]


def train_runs(runs: Runs, asked: Collection[str] = ()):
    """Train, export and evaluate runs that read the same activations, whose folders this process holds.

    Raises BadInput if what all of them read cannot be opened, and Interrupted.
    """
    try:
        _train(runs, asked)
    except NoneLeft:
        pass


def _train(runs: Runs, asked: Collection[str]):
    runs.each(lambda name, config: checks.check_before_opening(Path(config.run), config))
    inputs, training = _open(runs, asked), next(iter(runs.going.values())).training
    hooks = [*dict.fromkeys(_hook(config, inputs) for config in runs.going.values())]
    source = _source(inputs, hooks, training.batch.order_seed)
    own = runs.each(lambda name, config: inputs.at(_hook(config, inputs)))
    runs.each(lambda name, config: checks.check_data(Path(config.run), config, source, own[name].width))
    lm = inputs.lm if training.type.reads == "contexts" else None
    programs = processes.on_all(partial(_programs, runs, own, lm))
    batches = make_batches(next(iter(runs.going.values())), inputs.mesh, source)
    _say_amount_read(**_read(source, training.batch.tokens))
    runs.each(lambda name, config: _write_facts(config, own[name], source))
    samples = cache(partial(_samples, batches))

    def member(name: str, config: Config) -> Member:
        program, at = programs[name], hooks.index(own[name].hook)

        def step(state: TrainState, batch, number: int):
            # Of several hook points each has an array of its own.
            batch = batch if len(hooks) == 1 else (batch[at],)
            with jax.set_mesh(inputs.mesh):
                return processes.one_by_one(program.train_step(state, batch, number, lm))

        folder = Path(config.run)
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.log.keep_checkpoints))
        state = checkpoints.restore(program.abstract_state(inputs.mesh))
        if state is None:
            path = config.training.init_from
            params = log_thresholds(load(path, mesh=inputs.mesh)) if path else None
            sample = samples()[at] if program.d_out is None else samples()
            state = program.state_of(sample, inputs.mesh, params)
        counts = activation_functions.get(config.sae.activation).counts
        logs = stack.enter_context(Logs(folder, config.log, int(state.step), fields_of(config), counts))
        return Member(state, step, checkpoints, logs, config.log)

    with ExitStack() as stack:
        members = runs.each(member)
        # A sample may be as large as a run's state.
        samples.cache_clear()
        stream = batches.iterate(min(member.start for member in members.values()), training.steps)
        train_loop([*members.values()], stream, training.steps, training.batch.batch_size)
    for name, member in members.items():
        if member.error is not None:
            runs.done(name, member.error)
    if runs.going:
        read = _read(source, training.batch.tokens)
        runs.each(lambda name, config: runs.done(name, _finish(config, own[name], members[name], read)))


def _open(runs: Runs, asked: Collection[str]) -> RunInputs:
    """What all runs work on, at the hook point of the first one. Each is checked on the way."""
    first = next(iter(runs.going.values()))
    several = len({config.lm.hook for config in runs.going.values()}) > 1
    # One hook point that the model does not have should not stop the others.
    lm = dataclasses.replace(first.lm, hook=None) if several else first.lm
    folder = lambda config: Path(config.run)

    def check(lm, hook: str):
        runs.each(
            lambda name, config: checks.check_objective(config, lm, (config.lm.hook if several else None) or hook)
        )

    def check_identity(fingerprints: dict[str, str]):
        runs.each(lambda name, config: checks.check_identity(folder(config), config, asked, fingerprints))

    choose_mesh = lambda d: checks.training_mesh([*runs.going.values()], d)
    need = {"train": first.training.batch.tokens, "held_out": first.eval_tokens}
    return processes.on_all(partial(open_inputs, lm, first.data, choose_mesh, check, check_identity, need))


def _hook(config: Config, inputs: RunInputs) -> str | None:
    """Where a run reads activations; None if that is not known."""
    return (config.lm.hook if inputs.lm else None) or inputs.hook


def _source(inputs: RunInputs, hooks: list[str | None], seed: int) -> Source:
    if hooks == [inputs.hook]:
        return inputs.source("train", seed)
    return inputs.source_at(tuple(hooks), "train", seed)


def _write_facts(config: Config, inputs: RunInputs, source: Source):
    facts = inputs.facts | _read(source, config.training.batch.tokens) | {"data_order": source.order_name}
    folders.write_facts(Path(config.run), config, inputs.mesh, facts)
    processes.on_primary(partial(places.remember, config, inputs.fingerprints))


def _programs(runs: Runs, own: dict[str, RunInputs], lm) -> dict[str, Program]:
    def site(config: Config, inputs: RunInputs) -> Site:
        places = inputs.hook or "", inputs.hook_out
        return Site(config.sae, config.training, inputs.width, *places, inputs.width_out)

    sites = [site(config, own[name]) for name, config in runs.going.items()]
    return dict(zip(runs.going, make_programs(sites, lm and lm.config)))


def _samples(batches: ActivationBatches | ContextBatches) -> tuple[jax.Array, ...]:
    """Activations [R, d] that autoencoders are initialised from, at each hook point that is read."""
    if processes.is_primary():
        print("jaxsae: compiling, and computing the first activations", file=sys.stderr)
    return batches.samples(SAMPLE)


def _read(source: Source, tokens: int) -> dict:
    """How many tokens there are to train on, and how often each is read."""
    return {"data_tokens": source.count, "times_read": tokens / source.count}


def _say_amount_read(data_tokens: int, times_read: float):
    if processes.is_primary():
        print(f"jaxsae: {amount_read(data_tokens, times_read)}", file=sys.stderr)
        if times_read > MANY_TIMES:
            print(f"jaxsae: that is more than {MANY_TIMES} times: give more --text, or fewer --tokens", file=sys.stderr)


def make_batches(config: Config, mesh: jax.sharding.Mesh, source) -> ActivationBatches | ContextBatches:
    """Rows of activations, or whole contexts if the objective runs the language model after the autoencoder."""
    size = config.training.batch.batch_size
    if config.training.type.reads == "contexts":
        return ContextBatches(source, size // source.rows, mesh)
    plan = BufferPlan.of(size, source.count / len(source), mesh.shape["data"], config.data.buffer_batches)
    return ActivationBatches(source, plan, mesh, config.training.batch.order_seed)


def _finish(config: Config, inputs: RunInputs, member: Member, read: dict) -> dict:
    """Export, evaluate, summarise and draw a trained state; returns the summary."""
    folder, state = Path(config.run), member.state
    with jax.set_mesh(inputs.mesh):
        sae = exported(state, config.training.ema_decay())
    summary = measure_state(config, inputs, state, sae, config.eval_tokens)
    summary |= {"tokens_per_second": _rate(folder, config, member), **read}
    native.save(sae, folder / "sae", about(config, inputs.facts, float(state.mse_scale), summary))

    def summarise():
        folders.write(folder / SUMMARY, summary)
        hooks = [*(config.hooks or [inputs.hook]), *([inputs.hook_out] if inputs.hook_out else [])]
        where = " ".join([config.lm.lm, *hooks]) if inputs.lm else config.data.activations
        title = f"{config.sae.activation}, n {config.sae.n}, k {config.sae.k}, {where}"
        plot(folder / METRICS, folder / "training.png", title)

    processes.on_primary(summarise)
    return summary


def _rate(folder: Path, config: Config, member: Member) -> float | None:
    """Tokens per second of training."""
    if member.seconds:
        return (config.training.steps - member.start) * config.training.batch.batch_size / member.seconds
    # Trained before: what its summary says, or the last row of its log if a kill came before the summary.
    rows = read_metrics(folder / METRICS) or [{}]
    return folders.read(folder / SUMMARY).get("tokens_per_second", rows[-1].get("tokens_per_second"))
