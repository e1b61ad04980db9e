"""One run from its configuration: compose data, model and training, write the run folder, evaluate."""

import dataclasses
import itertools
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxsae import __version__, processes
from jaxsae import config as configs
from jaxsae import folder as folders
from jaxsae.config import Config
from jaxsae.data.activations import Batches, Plan
from jaxsae.data.config import DataConfig
from jaxsae.data.sequences import Sequences
from jaxsae.errors import BadInput
from jaxsae.evals.report import evaluate as evaluate_saes
from jaxsae.folder import CONFIG, EVAL, SUMMARY
from jaxsae.lm.config import LMConfig
from jaxsae.lm.gpt2 import flops_of_pieces
from jaxsae.lm.hooks import parse
from jaxsae.sae import activations
from jaxsae.sae import files as sae_files
from jaxsae.sae.struct import SAE
from jaxsae.setting import Setting, check_start, check_width, make_setting
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.config import SAEConfig, TrainingConfig, k_aux_of
from jaxsae.training.logs import METRICS, Logs, check_packages, read_metrics
from jaxsae.training.loop import train as train_loop
from jaxsae.training.optimizer import ema_weights, make_optimizer, unit_rows
from jaxsae.training.plot import plot
from jaxsae.training.resample import make_resample
from jaxsae.training.start import abstract_state, first_state
from jaxsae.training.step import TrainState, hyper, make_step

# Settings of the sparsity term, which an autoencoder does not need and its further training does.
TERMS = ("penalty", "p", "bandwidth", "target_l0")


def train(config: Config) -> dict:
    """Train, export, evaluate: the whole run folder; returns its summary. Raises BadInput, Interrupted or Diverged.

    Where there are several processes, all of them call this and the first one writes.
    """
    processes.start(config.distributed)
    config = dataclasses.replace(config, run=config.run or folders.default_folder(config))
    folder = Path(config.run)
    folders.check(folder, config)
    processes.on_each(partial(check_packages, config.log))
    # What a checkpoint holds does not depend on what it once started from.
    starts = lambda: config.training.start and not any(folder.glob("checkpoints/*"))
    processes.on_each(lambda: check_start(config) if starts() else None)
    setting = processes.on_each(partial(make_setting, config))
    folders.check_data(folder, setting.source.fingerprint)
    processes.on_each(lambda: check_width(config, setting.source.width) if starts() else None)
    training, size = config.training, config.training.batch_size
    batches, objective = _batches(config, setting), setting.objective
    folders.write_facts(folder, config, setting.mesh, setting.source.fingerprint)
    k_aux = k_aux_of(config.sae, training, setting.source.width)
    optimizer = make_optimizer(config.sae.decoder, eps=training.adam_eps)
    step = jax.jit(make_step(config.sae, training, optimizer, k_aux, objective), donate_argnums=0)
    revive = jax.jit(make_resample(config.sae, training, objective), donate_argnums=0)
    lm, knobs = setting.lm if objective.end_to_end else None, hyper(config.sae, training)
    resampled = training.resample_steps()

    def under_mesh(state, batch):
        number = next(numbers)
        with jax.set_mesh(setting.mesh):
            state, metrics = step(state, batch, knobs, lm)
            return (revive(state, batch, lm) if number in resampled else state), metrics

    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.log.keep_checkpoints))
        state = checkpoints.restore(abstract_state(setting.source.width, setting.mesh, config.sae, training))
        if state is None:
            params = sae_files.load(training.start, setting.mesh) if training.start else None
            state = first_state(batches, setting.mesh, config.sae, training, params)
        start = int(state.step)
        numbers = itertools.count(start + 1)
        logs = stack.enter_context(Logs(folder, config.log, start, dataclasses.asdict(config)))
        stream = batches.stream(start, training.steps)
        state, seconds = train_loop(state, stream, under_mesh, training.steps, size, checkpoints, logs, config.log)
    if seconds:
        rate = (training.steps - start) * size / seconds
    else:  # trained before: what its summary says, or the last row of its log where a kill came before the summary
        rows = read_metrics(folder / METRICS) or [{}]
        rate = folders.read(folder / SUMMARY).get("tokens_per_second", rows[-1].get("tokens_per_second"))
    return _finish(folder, config, setting, state, rate)


def _batches(config: Config, setting: Setting) -> Batches | Sequences:
    """Rows of activations, or whole contexts where the objective runs the language model behind the autoencoder."""
    source, mesh, size = setting.source, setting.mesh, config.training.batch_size
    if setting.objective.end_to_end:
        return Sequences(source, size // source.rows, mesh)
    plan = Plan.of(size, source.rows, mesh.shape["data"], config.data.chunk)
    return Batches(source, plan, mesh, config.training.seed)


def evaluate(folder: Path, tokens: int, mesh: tuple[int, int] | None = None, text: tuple[str, ...] = ()) -> dict:
    """Evaluate a run's newest checkpoint, or an exported autoencoder; writes eval.json beside it.

    On held-out tokens of the text that it was trained on, or of another. Where there are several processes, all of them
    call this and the first one writes.
    """
    is_run = (folder / "checkpoints").is_dir()
    config = configs.from_json(folder / CONFIG) if is_run else config_of_export(folder)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, text=text or config.data.text),
        training=dataclasses.replace(config.training, mesh=mesh),
    )
    setting = processes.on_each(partial(make_setting, config))
    if is_run:
        metrics, by_position = _measure(config, setting, _newest(folder, config, setting), tokens)
        metrics["tokens_per_second"] = folders.read(folder / SUMMARY).get("tokens_per_second")
    else:
        about, saes = sae_files.describe(folder), {"": sae_files.load(folder, setting.mesh)}
        metrics, by_position = _measure_saes(config, setting, saes, about["mse_scale"], about["steps"], tokens)
        metrics["dead_fraction"] = about["dead_fraction"]
    processes.on_first(lambda: folders.write(folder / EVAL, {**metrics, **by_position}))
    return {**metrics, **by_position}


def _newest(folder: Path, config: Config, setting: Setting) -> TrainState:
    """The state of a run's newest checkpoint, without its optimizer.

    The run may be training: nothing in its folder is touched.
    """
    like = abstract_state(setting.source.width, setting.mesh, config.sae, config.training)
    with Checkpoints(folder / "checkpoints", config.log.keep_checkpoints, tidy=False) as checkpoints:
        state = checkpoints.restore(dataclasses.replace(like, opt=None))
    if state is None:
        raise BadInput(f"{folder} has no checkpoint yet: train it first")
    return state


def config_of_export(folder: str | Path) -> Config:
    """What an exported autoencoder says of how it was trained, as a configuration; a run says all of it."""
    if (Path(folder) / "checkpoints").is_dir():
        return configs.from_json(Path(folder) / CONFIG)
    about = sae_files.describe(folder)
    training = ("objective", "tokens", "batch_size", "lr", "seed", "ema")
    needed = ("lm", "hook", "process_weights", "text", "activations", "context", "n", "steps", "mse_scale", *training)
    if missing := [name for name in (*needed, "dead_fraction") if name not in about]:
        raise BadInput(f"{folder} does not say {', '.join(missing)}, so it is not known what to evaluate it on")
    text = tuple(about["text"] or ("stdlib",))
    kept = lambda names: {name: about[name] for name in names if name in about}
    return Config(
        model=LMConfig(about["lm"] or "embedded", about["hook"], process_weights=about["process_weights"]),
        data=DataConfig(text, activations=about["activations"], context=about["context"], **kept(("skip_first",))),
        sae=SAEConfig(n=about["n"], **configs.with_tuples(about["spec"]), **kept(TERMS)),
        training=TrainingConfig(**{name: about[name] for name in training}, **kept(("sparsity", "error_unit"))),
    )


def table(metrics: dict) -> str:
    """The metrics that people look at first, as text."""
    columns = {"": "exported", "raw_": "without EMA", "no_pos0_": "no position 0"}
    columns = {p: title for p, title in columns.items() if f"{p}nmse" in metrics}
    names = ("nmse", "l0", "dead_fraction", "ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered")
    show = lambda value: "" if value is None else f"{value:.4f}"
    lines = [f"{'held-out':<15}" + "".join(f"{title:>15}" for title in columns.values())]
    for name in names:
        values = [metrics.get(f"{p}{name}") for p in columns]
        if any(v is not None for v in values):
            lines.append(f"{name:<15}" + "".join(f"{show(v):>15}" for v in values))
    return "\n".join(lines)


def _finish(folder: Path, config: Config, setting: Setting, state: TrainState, rate: float | None) -> dict:
    """Export, evaluate, summarise and draw a trained state."""
    summary, _ = _measure(config, setting, state, config.eval_tokens)
    summary["tokens_per_second"] = rate
    sae = _under(setting, partial(_exported, config), state)
    sae_files.save(sae, folder / "sae", _about(config, setting, float(state.mse_scale), summary))

    def summarise():
        folders.write(folder / SUMMARY, summary)
        where = f"{config.model.lm} {setting.hook}" if setting.lm else config.data.activations
        title = f"{config.sae.activation}, n {config.sae.n}, k {config.sae.k}, {where}"
        plot(folder / METRICS, folder / "training.png", title)

    processes.on_first(summarise)
    return summary


def _under(setting: Setting, function, *args):
    with jax.set_mesh(setting.mesh):
        return jax.jit(function)(*args)


def _exported(config: Config, state: TrainState) -> SAE:
    """The finished autoencoder: EMA weights where EMA is on, decoder rows unit norm."""
    if state.ema is not None:
        return ema_weights(state.ema, state.step, config.training.ema_decay())
    return _raw(state)


def _raw(state: TrainState) -> SAE:
    """The weights without EMA."""
    params = state.params
    return params.replace(W_dec=unit_rows(params.W_dec)) if params.spec.decoder != "free" else params


def _measure(config: Config, setting: Setting, state: TrainState, tokens: int) -> tuple[dict, dict]:
    """The flat metrics of the exported and the raw weights on held-out data, and NMSE by position."""
    saes = {"": _under(setting, partial(_exported, config), state)}
    if state.ema is not None:
        saes["raw_"] = _under(setting, _raw, state)
    window, scale = config.training.dead_window(), float(state.mse_scale)
    metrics, by_position = _measure_saes(config, setting, saes, scale, int(state.step), tokens)
    metrics["dead_fraction"] = float(_under(setting, lambda idle: jnp.mean(idle >= window), state.idle))
    return metrics, by_position


def _measure_saes(config: Config, setting: Setting, saes, mse_scale: float, step: int, tokens: int):
    """The flat metrics of autoencoders after `step` steps of training, and NMSE by position."""
    measured, by_position = evaluate_saes(
        saes,
        setting.held_out,
        setting.mesh,
        tokens,
        mse_scale,
        setting.lm,
        setting.hook,
        config.sae.selection(),
        quiet=not processes.is_first(),
    )
    trained = step * config.training.batch_size
    n, d, k = config.sae.n, setting.source.width, config.sae.k
    # The six products of size B n d of a dense implementation.
    dense = 12 * n * d
    sparse = activations.get(config.sae.activation).support is not None
    return {
        "step": step,
        "tokens": trained,
        **measured,
        # Per token: the dense encoder forward, the sparse decoder forward and three sparse gradients; end to end the
        # language model too.
        "flops": trained * ((2 * n * d + 8 * k * d if sparse else dense) + _lm_flops(setting)),
        "flops_dense": trained * dense,
    }, by_position


def _lm_flops(setting: Setting) -> int:
    """Of the language model per token of end-to-end training: its prefix, and three times its suffix."""
    if not setting.objective.end_to_end:
        return 0
    prefix, suffix = flops_of_pieces(setting.lm.config, parse(setting.hook, setting.lm.config.n_layer))
    # Forward for the original and for the reconstruction, and back to the reconstruction.
    return prefix + 3 * suffix


def _about(config: Config, setting: Setting, mse_scale: float, summary: dict) -> dict:
    """What `jaxsae.describe` says. No time and no path of the run, so that equal runs export equal bytes."""
    model, data, training = config.model, config.data, config.training
    folder = Path(model.lm)
    return {
        "lm": None if setting.lm is None else (str(folder.resolve()) if folder.is_dir() else model.lm),
        "process_weights": model.process_weights,
        "hook": setting.hook,
        "context": data.context,
        "skip_first": data.skip_first,
        "text": list(data.text) if setting.lm else None,
        "activations": data.activations,
        "data_fingerprint": setting.source.fingerprint,
        "objective": training.objective,
        "sparsity": training.sparsity_weight(config.sae),
        "error_unit": training.error_unit,
        **{name: getattr(config.sae, name) for name in TERMS},
        "n": config.sae.n,
        "d": setting.source.width,
        "steps": summary["step"],
        "tokens": summary["tokens"],
        "batch_size": training.batch_size,
        "lr": training.learning_rate(config.sae.n),
        "ema": training.ema_decay(),
        "seed": training.seed,
        "mse_scale": mse_scale,
        "dead_fraction": summary["dead_fraction"],
        "jaxsae": __version__,
    }
