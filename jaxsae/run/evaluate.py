"""Evaluations of a run's checkpoint, or of a saved autoencoder, on held-out data."""

import dataclasses
from functools import cache, partial
from pathlib import Path

import jax

from jaxsae import evals, interop
from jaxsae.config import Config, with_fields
from jaxsae.distributed import processes
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.evals.subject import Subject
from jaxsae.lm import architecture, default_hook, load_tokenizer
from jaxsae.lm.weights import find_folder, read_config
from jaxsae.run import folder as folders
from jaxsae.run import foreign, identity, places
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.folder import MANIFEST, SUMMARY
from jaxsae.run.inputs import EVAL_SEED, RunInputs, open_inputs
from jaxsae.run.report import FAILED
from jaxsae.run.results import save
from jaxsae.run.saved import config_of, export_of, fingerprints_of, idle_fractions, is_run, restore
from jaxsae.sae.types import SAE
from jaxsae.scaling import flops
from jaxsae.training.export import finished
from jaxsae.training.step import TrainState

# What is not known of an autoencoder that another library trained.
OF_TRAINING = ("step", "tokens", "flops", "flops_dense", "dead_fraction", "auxk_fraction", "trained_context")


def evaluate(
    folder: Path, on: EvalConfig, names: tuple[str, ...] = ("standard",), flags=None, out: Path | None = None
) -> dict:
    """Evaluate a run's checkpoint, or an exported autoencoder; writes eval.json into `out` (default: `folder`).

    `names` are evaluations or "all", those that can be computed; `flags` an `evals.EvaluationConfigs`. The standard
    metrics are flat, every other evaluation is one object under its name. With several processes, all of them call this
    and the primary one writes. What eval.json says of the same weights on the same tokens stays in it. Raises BadInput
    for what cannot be evaluated.
    """
    asked = evals.chosen(names)
    out = folder if out is None else out
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file: give --out a folder")
    subject = open_subject(folder, on)
    if "all" in names:
        asked = _possible(asked, subject, flags)
    for name in asked:
        evals.check(name, subject, flags)
    results = {"data_fingerprint": subject.source.fingerprint, **measure(subject, asked, flags)}
    measured = [name for name in asked if name in results]
    lists = {f"{name}.{key}": results[name].pop(key) for name in measured for key in evals.EVALUATIONS[name].apart}
    processes.on_primary(partial(save, results, lists, asked, folder, out))
    return results


def measure(subject: Subject, names: tuple[str, ...] = ("standard",), flags=None) -> dict:
    """What eval.json says of evaluations: the standard metrics flat, the others one object each."""
    results = {name: value for name, value in subject.facts.items() if name != "mse_scale"}
    for name in names:
        try:
            result = evals.measure(name, subject, flags)
        except Exception as error:  # the others go on
            if len(names) == 1 or processes.is_distributed():
                raise
            results.setdefault(FAILED, {})[name] = f"{type(error).__name__}: {error}"
            continue
        if name == "standard":
            results |= result
        else:
            protocol = " ".join(evals.EVALUATIONS[name].protocol.split())
            results[name] = {"tokens": subject.rows, **result, "protocol": protocol}
    return results


def _possible(names: tuple[str, ...], subject: Subject, flags) -> tuple[str, ...]:
    """Those evaluations that can be computed; the others are named, with those of one reason in one line."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        try:
            evals.check(name, subject, flags)
        except BadInput as error:
            # Reasons that differ in the name alone are one.
            reasons.setdefault(str(error).replace(f"--metrics {name} ", "--metrics NAME "), []).append(name)
    for reason, left_out in reasons.items():
        if not subject.quiet:
            verb = "is" if len(left_out) == 1 else "are"
            reason = reason.replace("NAME", left_out[0]) if verb == "is" else reason
            print(f"jaxsae: {', '.join(left_out)} {verb} left out: {reason}")
    return tuple(name for name in names if not any(name in left_out for left_out in reasons.values()))


def open_subject(folder: Path, on: EvalConfig, split: str | None = None) -> Subject:
    """The autoencoder of a run or an exported folder on a mesh, with the data that `on` says.

    `split` is "train", "held_out" or "all" (default: what `on` says; held_out of what it was trained on, wherever that
    lies). Raises BadInput if text, tokenizer or language model are not those that it was trained on, and `on` does not
    ask for others.
    """
    of_run = is_run(folder)
    if on.step is not None and not of_run:
        raise BadInput(f"--step is of a run, and {folder} has no checkpoints: leave it out")
    trained, was = config_of(folder), fingerprints_of(folder)
    about = {} if of_run else interop.describe(folder)
    if "format" in about:
        trained = foreign.completed(trained, on, about, str(folder))
    elif on.hook or on.hook_out:
        raise BadInput(f"--hook and --hook-out are of autoencoders that do not say them: {folder} does, leave them out")
    width = None if of_run else interop.shape(folder)[1]
    config, inputs, split = _open(folder, on, trained, was, split or on.split, width)
    if of_run:
        state = restore(folder, config, inputs.mesh, on.step)
        sae = export_of(state, config)
        subject = subject_of(config, inputs, state, sae, on.tokens_read, trained, split)
        summary, manifest = folders.read(folder / SUMMARY), folders.read(folder / MANIFEST)
        facts = subject.facts | {"tokens_per_second": summary.get("tokens_per_second")}
        facts |= {name: manifest.get(name) for name in ("data_tokens", "times_read")}
    else:
        sae = interop.load(folder, inputs.mesh)
        facts = dict.fromkeys(OF_TRAINING)
        if "steps" in about:
            # Older exports do not say how many latents AuxK revived: it was the dead ones.
            older = about["dead_fraction"] if trained.training.auxk_weight(trained.sae.activation) > 0 else 0.0
            idle = {"dead_fraction": about["dead_fraction"], "auxk_fraction": about.get("auxk_fraction", older)}
            facts = _facts(trained, inputs, about["steps"], idle)
        facts |= {"mse_scale": about.get("mse_scale")}
        subject = _subject(config, inputs, sae, None, on.tokens_read, facts, split)
        facts = subject.facts
    for has, here in ((sae.d, inputs.width), (sae.d_out, inputs.width_out or inputs.width)):
        if has != here:
            raise BadInput(f"{folder} is for activations of width {has}, and here they have {here}")
    return dataclasses.replace(subject, facts=facts | _identity(was, inputs.fingerprints))


def _open(
    folder: Path, on: EvalConfig, trained: Config, was: dict[str, str], split: str | None, width: int | None
) -> tuple[Config, RunInputs, str]:
    """The configuration of what `on` says to read, that, opened, and the split to read (default: as `on` says).

    `was` are the fingerprints in training. `width` is that of the autoencoder (None: not known before it is restored).
    """
    config = on.data_of(trained)
    if on.text and identity.of_text(on.text) == was.get("text"):
        # The text of the run in another place: its documents, and the part that the run held out.
        split = split or "held_out"
        if trained.data.documents and not on.documents:
            config = with_fields(config, documents=trained.data.documents)
    places.check_found(config, str(folder))

    def choose(d: int) -> jax.sharding.Mesh:
        # Before the text is tokenised.
        if width not in (None, d):
            raise BadInput(f"{folder} is for activations of width {width}, and here they have {d}")
        return evaluation_mesh(on.mesh, config.sae.n, d)

    asked = {name for name in ("text", "lm", "activations") if getattr(on, name)}
    check = lambda now: identity.check_same(was, now, config, asked, str(folder))
    need = {split or on.split_read: on.tokens_read}
    inputs = processes.on_all(partial(open_inputs, config.lm, config.data, choose, check_identity=check, need=need))
    processes.on_primary(partial(places.remember, config, inputs.fingerprints))
    same = identity.same_data(was, inputs.fingerprints)
    return config, inputs, split or ("held_out" if same else on.split_read)


def _identity(was: dict[str, str], now: dict[str, str]) -> dict:
    """What eval.json says of what was read: its fingerprints, and whether it is other than in training."""
    is_of_another_kind = bool(was) and not was.keys() & now.keys()
    other = identity.fields(now if is_of_another_kind else identity.changed(was, now))
    names = {"text": "other_text", "lm": "other_lm", "activations": "other_activations"}
    facts = {f"{kind}_fingerprint": fingerprint for kind, fingerprint in now.items()}
    return facts | {name: True for field, name in names.items() if field in other}


def evaluation_mesh(shape: tuple[int, int] | None, n: int, d: int) -> jax.sharding.Mesh:
    """`shape` if given, else all devices on `data`, or as many on `latent` as the weights need. BadInput if the latents
    do not divide.
    """
    if shape is None:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        count = jax.device_count()
        # Encoder and decoder, of the exported weights and of those without EMA; the rest is for activations and logits.
        weights = 2 * 2 * 4 * n * d
        latents = [m for m in range(1, count + 1) if count % m == 0 and n % m == 0]
        roomy = [m for m in latents if not memory or weights / m <= memory / 2]
        m = min(roomy, default=max(latents))
        shape = (count // m, m)
    mesh = make_mesh(*shape)
    if n % shape[1]:
        raise BadInput(f"--mesh {shape[0]} {shape[1]}: the {n} latents do not divide over {shape[1]} devices")
    return mesh


def measure_state(config: Config, inputs: RunInputs, state: TrainState, sae: SAE, tokens: int) -> dict:
    """What summary.json says: the standard metrics of the exported `sae` and of the weights without EMA, on held-out
    data, one number each.
    """
    metrics = measure(subject_of(config, inputs, state, sae, tokens))
    return {name: value for name, value in metrics.items() if not isinstance(value, list) or name == "eval_text"}


def subject_of(
    config: Config,
    inputs: RunInputs,
    state: TrainState,
    sae: SAE,
    tokens: int | None,
    trained: Config | None = None,
    split: str = "held_out",
) -> Subject:
    """A trained state, and `sae`, its export, with the data of `inputs`, which `config` describes.

    `trained` is the configuration of its run, if that read other data.
    """
    with jax.set_mesh(inputs.mesh):
        raw = None if state.ema is None else jax.jit(finished)(state.params)
    facts = _facts(trained or config, inputs, int(state.step), idle_fractions(state, config))
    facts |= {"mse_scale": float(state.mse_scale)}
    return _subject(config, inputs, sae, raw, tokens, facts, split)


def _subject(
    config: Config, inputs: RunInputs, sae: SAE, raw: SAE | None, tokens: int | None, facts: dict, split: str
) -> Subject:
    source = inputs.source(split, EVAL_SEED)
    subject = Subject(
        sae,
        source,
        inputs.mesh,
        tokens,
        raw,
        inputs.lm,
        inputs.hook_out or inputs.hook,
        inputs.hook if inputs.hook_out else None,
        config.sae.selection(),
        tokenizer=inputs.lm and cache(partial(load_tokenizer, inputs.lm)),
        quiet=not processes.is_primary(),
    )
    eval_text = list(config.data.text) if inputs.lm else config.data.activations
    facts |= {"eval_tokens": subject.rows, "eval_text": eval_text, "eval_split": split}
    facts["eval_context"] = source.rows if inputs.lm else None
    return dataclasses.replace(subject, facts=facts)


def _facts(config: Config, inputs: RunInputs, step: int, idle: dict[str, float]) -> dict:
    """What is known of the training of an autoencoder after `step` steps, with the configuration `config`.

    `idle` is `idle_fractions` at its end. AuxK is counted as if its share had been that throughout: how many latents
    there were at each step is not kept.
    """
    training, n, d = config.training, config.sae.n, inputs.width
    trained, passes = step * training.batch.batch_size, training.type.lm_passes
    lm = _lm_flops(config) if any(passes) else (0, 0)
    total = None
    if lm is not None:
        ema = training.ema_decay() > 0
        size, d_out = training.batch.batch_size, inputs.width_out
        revived = idle["auxk_fraction"]
        per_token = flops.training(config.sae, d, size, ema, revived, lm_passes=passes, lm=lm, d_out=d_out)
        total = trained * sum(per_token.values())
    return {
        "step": step,
        "tokens": trained,
        "flops": total,
        "flops_dense": trained * flops.dense(n, d, inputs.width_out),
        **idle,
        "trained_context": config.data.context if config.data.activations is None else None,
    }


def _lm_flops(config: Config) -> tuple[float, float] | None:
    """Of the language model that training ran, which need not be the one at hand; None if it is not there any more."""
    try:
        lm = read_config(find_folder(config.lm.lm))
    except BadInput:
        return None
    return architecture.flops(lm, config.lm.hook_out or config.lm.hook or default_hook(lm.n_layer))
