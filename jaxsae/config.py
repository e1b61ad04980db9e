"""The whole configuration of a run, composed of what each part defines for itself. Every field is a flag."""

import dataclasses
import json
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from jaxsae import compatibility
from jaxsae.data.config import DataConfig, is_synthetic
from jaxsae.distributed.processes import DistributedConfig
from jaxsae.errors import BadInput
from jaxsae.flags import FLAT
from jaxsae.lm.config import LMConfig
from jaxsae.sae import activation_functions
from jaxsae.sae.config import SAEConfig
from jaxsae.training import objectives
from jaxsae.training.config import TrainingConfig, check_micro_batches
from jaxsae.training.logs import LogConfig

# The version of config.json, and of the configuration in an exported autoencoder.
FORMAT = 4


@dataclass(frozen=True)
class Config:
    """Train a sparse autoencoder on a language model's activations."""

    run: str | None = None
    """Run folder to write; default: a new one, runs/<time>-<activation>-n<n>-k<k>."""
    resume: bool = False
    """With --run: start, or resume from the newest checkpoint there, with its own settings where no flag says them."""
    eval_tokens: int = 32_768
    """Held-out tokens of the evaluation at the end."""
    lm: Annotated[LMConfig, FLAT] = field(default_factory=LMConfig)
    data: Annotated[DataConfig, FLAT] = field(default_factory=DataConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    training: Annotated[TrainingConfig, FLAT] = field(default_factory=TrainingConfig)
    log: Annotated[LogConfig, FLAT] = field(default_factory=LogConfig)
    distributed: Annotated[DistributedConfig, FLAT] = field(default_factory=DistributedConfig)

    def __post_init__(self):
        if self.resume and self.run is None:
            raise BadInput("--resume needs --run DIR, the folder to resume")
        if self.sae.crosscoder and self.data.activations is None:
            # So that the configuration of the autoencoder alone says what it computes. Other hook points may be given
            # to a configuration that has sections already.
            object.__setattr__(self, "sae", dataclasses.replace(self.sae, sections=max(1, len(self.hooks))))
        self._check_coder()
        check_micro_batches(self.sae, self.training)
        skipping = {"--skip-first": self.data.skip_first, "--skip-tokens": self.data.skip_tokens}
        if self.training.type.reads == "contexts" and (flag := next((f for f, skips in skipping.items() if skips), "")):
            raise BadInput(f"{flag} leaves out tokens that --objective {self.training.objective} needs: leave it out")
        if self.eval_tokens < 1:
            raise BadInput(f"--eval-tokens is {self.eval_tokens}: give at least 1")

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points that are given; empty for the default one."""
        hook = self.lm.hook
        return () if hook is None else (hook,) if isinstance(hook, str) else hook

    def _check_coder(self):
        """Raises BadInput if flags of transcoders and of crosscoders do not fit the others."""
        sae, out, hooks = self.sae, self.lm.hook_out, self.hooks
        if len(hooks) != 1 and isinstance(self.lm.hook, tuple) and not sae.crosscoder:
            raise BadInput(f"--hook has {len(hooks)} names: give one, or --sae.crosscoder for one code of all")
        if sae.crosscoder and sae.sections == 1:
            fix = "--hook A B ..." if self.data.activations is None else "--sae.sections, how many the files hold"
            raise BadInput(f"--sae.crosscoder is one code of several activations: give {fix}")
        if sae.sections > 1:
            if self.data.activations is None and not sae.crosscoder:
                raise BadInput(
                    f"--sae.sections is {sae.sections}, and one activation is read: give --sae.sections 1, or "
                    "--sae.crosscoder and several names to --hook"
                )
            if len({*hooks}) < len(hooks):
                raise BadInput(f"--hook {' '.join(hooks)}: two of them are the same, give each once")
            if out is not None:
                raise BadInput("--hook-out is of a transcoder, which has one --hook: leave out --sae.crosscoder")
            if self.training.objective != "local":
                raise BadInput(
                    f"--objective is {self.training.objective}: a crosscoder is trained locally, leave it out"
                )
        if out is None:
            if sae.skip:
                raise BadInput("--sae.skip is of a transcoder: give --hook-out, or leave it out")
            return
        if is_synthetic(self.data.activations):
            raise BadInput("--hook-out is an array of files, and synthetic activations have none: leave it out")
        if self.lm.hook is None and self.data.activations is None:
            raise BadInput("--hook-out is where a transcoder writes: give --hook too, where it reads")
        if self.training.dead.resample_every is not None:
            raise BadInput("--resample-every is of autoencoders: with --hook-out give --auxk-coef for dead latents")


def fields_of(config) -> dict[str, Any]:
    """{flag without dashes, with underscores: value} of every field of a configuration, in order.

    fields_of(Config())["sae.n"]  # 4096
    """
    values = {}
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            prefix = "" if _is_flat(hints[f.name]) else f"{f.name}."
            values |= {f"{prefix}{name}": inner for name, inner in fields_of(value).items()}
        else:
            values[f.name] = value
    return values


def with_fields(config, **values):
    """`config` with other values of some fields, named as their flags are, with underscores.

        with_fields(config, **{"sae.n": 8192, "tokens": 10**6})

    Raises BadInput for names that it does not have, and for values that a field does not allow.
    """
    hints = typing.get_type_hints(type(config), include_extras=True)
    changes, left = {}, dict(values)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in left and not dataclasses.is_dataclass(value):
            changes[f.name] = left.pop(f.name)
            _check_value(hints[f.name], changes[f.name], f.name, "a configuration")
        elif dataclasses.is_dataclass(value):
            prefix = "" if _is_flat(hints[f.name]) else f"{f.name}."
            inner = {
                name: left.pop(name)
                for name in list(left)
                if name.startswith(prefix) and name.removeprefix(prefix) in fields_of(value)
            }
            if inner:
                changes[f.name] = with_fields(value, **{name.removeprefix(prefix): v for name, v in inner.items()})
    if left:
        raise BadInput(f"a configuration has no {', '.join(left)}: it has {', '.join(fields_of(config))}")
    return dataclasses.replace(config, **changes)


def _is_flat(hint) -> bool:
    return FLAT in getattr(hint, "__metadata__", ())


def without_effect(config: Config, flags: Collection[str]) -> list[str]:
    """Which of `flags` change nothing in such a run, and why, as lines to print."""
    sae, training = config.sae, config.training
    used = {
        "--sparsity": (sae.penalty is not None, f"--sae.activation {sae.activation} has no sparsity term"),
        "--k-aux": (training.auxk_weight(sae.activation) > 0, "AuxK is off, give --auxk-coef to have it"),
        "--auxk-after": (training.auxk_weight(sae.activation) > 0, "AuxK is off, give --auxk-coef to have it"),
        "--sae.tanh-scale": (
            (sae.sparsity.penalty or next(iter(activation_functions.get(sae.activation).penalties), None)) == "tanh",
            "--sae.penalty is not tanh",
        ),
        "--sae.sections": (
            config.data.activations is not None or not sae.crosscoder,
            "there is one section for each --hook",
        ),
        "--lr-end": (training.optimizer.schedule != "constant", "--schedule is constant"),
        "--max-resamples": (training.dead.resample_every is not None, "without --resample-every there are none"),
    }
    notes = [f"{flag} has no effect: {why}" for flag, (effect, why) in used.items() if flag in flags and not effect]
    # The flags of an objective or an activation function that is not the one in use.
    for group, prefix, chosen, asked in (
        (training.objectives, "--", training.objective, "--objective"),
        (sae.families, "--sae.", sae.activation, "--sae.activation"),
    ):
        for f in dataclasses.fields(group):
            start = f"{prefix}{f.name.replace('_', '-')}."
            notes += [
                f"{flag} has no effect: {asked} is {chosen}"
                for flag in sorted(flags)
                if flag.startswith(start) and f.name != chosen
            ]
    return notes


# What may differ when a run is resumed: none of it changes the result, but for float rounding on another mesh.
MAY_CHANGE_ON_RESUME = {"run", "resume", "eval_tokens", "cache", "mesh", "micro_batches", "sae.select_memory"}
MAY_CHANGE_ON_RESUME |= {"data_processes", "bad_documents", "lm_shard"}
MAY_CHANGE_ON_RESUME |= {f.name for kind in (LogConfig, DistributedConfig) for f in dataclasses.fields(kind)}
MAY_CHANGE_ON_RESUME |= {
    f"{name}.{flag}"
    for name, kind in objectives.REGISTRY.items()
    for flag in getattr(kind.Config, "MAY_CHANGE_ON_RESUME", ())
}


def differences(saved: Config, given: Config, by_content: Collection[str] = ()) -> list[str]:
    """What of `given` contradicts a saved run, as `--flag was saved value, not given value`.

    More tokens do not, if all that follows from their number stays as it was. Fields in `by_content` name what is
    compared by what it holds.
    """
    a, b = fields_of(saved) | _set_by_tokens(saved, saved), fields_of(given) | _set_by_tokens(given, saved)
    allowed = MAY_CHANGE_ON_RESUME | set(by_content)
    # Activations from files are never what a language model computes.
    allowed -= {"activations"} if None in (a["activations"], b["activations"]) else set()
    allowed |= {"tokens"} if b["tokens"] > a["tokens"] else set()
    changed = [name for name in a if a[name] != b[name] and name not in allowed]
    return [f"{flag_of(name)} was {a[name]}, not {b[name]}" for name in changed]


def _set_by_tokens(config: Config, saved: Config) -> dict[str, Any]:
    """{field: its value in effect} of all that the number of tokens may decide, in training up to the end of `saved`.

    The learning rate, the EMA decay and the idle tokens of dead latents have defaults that follow from it, a schedule
    ends with it, and the last resampling is before the end.
    """
    training, end = config.training, saved.training.steps
    schedule = training.optimizer.schedule
    return {
        "lr": training.learning_rate(config.sae),
        "ema": training.ema_decay(),
        "dead_after": training.dead_window(),
        "auxk_after": training.auxk_window() if training.auxk_weight(config.sae.activation) > 0 else None,
        "schedule": schedule if schedule == "constant" else f"{schedule} to step {training.steps}",
        "max_resamples": len([step for step in training.resample_steps() if step <= end]),
    }


def flags_for_longer(saved: Config, given: Config) -> str:
    """The flags with which more tokens leave everything else as it was in a saved run; empty if there are none."""
    a, b = _set_by_tokens(saved, saved), _set_by_tokens(given, saved)
    if a["schedule"] != b["schedule"]:
        return ""
    return " ".join(f"{flag_of(name)} {a[name]}" for name in a if a[name] != b[name])


def resumed(saved: Config, given: Config) -> Config:
    """A saved run's configuration after it was resumed with `given`: where its data lie, and for how long it trains."""
    values = fields_of(given)
    names = ("lm", "text", "activations", "tokens", *_set_by_tokens(saved, saved))
    return with_fields(saved, **{name: values[name] for name in names})


def flag_of(name: str) -> str:
    """The flag of a field, `--sae.select-memory` of `sae.select_memory`."""
    return f"--{name.replace('_', '-')}"


def to_dict(config: Config) -> dict:
    """A configuration as JSON objects, with its format version, without how its processes were started."""
    document = {name: value for name, value in dataclasses.asdict(config).items() if name != "distributed"}
    return {"format": FORMAT, **document}


def from_dict(document: dict, source: str) -> Config:
    """The inverse of `to_dict`, of this version or an older one; `source` is named in errors.

    Raises BadInput for what a newer version wrote, and for fields that this one does not know.
    """
    if not isinstance(document, dict):
        raise BadInput(f"{source} is not the configuration of a run: it holds no JSON object")
    document = dict(document)
    version = document.pop("format", 1 if _is_of_0_1(document) else FORMAT)
    if isinstance(version, str):
        raise BadInput(f"{source} is that of an exported autoencoder, {version}: give config.json of its run")
    if not isinstance(version, int) or version > FORMAT:
        raise BadInput(
            f"{source} has format {version}, and this jaxsae reads up to {FORMAT}: it was written by a newer version, "
            "so install that"
        )
    if version == 1:
        document = compatibility.config_from_1(document)
    if version <= 2:
        document = compatibility.config_from_2(document)
    if version <= 3:
        document = compatibility.config_from_3(document)
    return _build(Config, document, "", source)


def _is_of_0_1(document) -> bool:
    """0.1 noted no format; it had the language model as `model`, and what people write by hand does not."""
    return isinstance(document, dict) and "format" not in document and "model" in document


def _check_value(hint, value, name: str, source: str):
    """Raises BadInput for a value that a field with such a type hint does not allow."""
    allowed = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if allowed and value not in allowed:
        raise BadInput(f"{source} has {name} {value!r}: allowed are {', '.join(map(str, allowed))}")
    if hint is int and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadInput(f"{source} has {name} {value!r}: give a whole number")


def _build(kind: type, document: dict, path: str, source: str):
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := [name for name in document if name not in known]:
        raise BadInput(
            f"{source} has the field {path}{unknown[0]}, which this version does not know: allowed are "
            f"{', '.join(f'{path}{name}' for name in sorted(known))}"
        )
    values = {}
    for name, value in document.items():
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise BadInput(f"{source} has {path}{name} {value!r}: it must be an object")
            values[name] = _build(hints[name], value, f"{path}{name}.", source)
        else:
            # JSON has lists where a configuration has tuples.
            values[name] = tuple(value) if isinstance(value, list) else value
            _check_value(hints[name], values[name], f"{path}{name}", source)
    try:
        return kind(**values)
    except (TypeError, AttributeError) as error:
        raise BadInput(f"{source} is not the configuration of a run: {error}") from error


def to_json(config: Config) -> str:
    """What a run folder keeps."""
    return json.dumps(to_dict(config), indent=1) + "\n"


def from_json(path: Path) -> Config:
    """The configuration in a config.json. Raises BadInput if there is none, or if it is not understood whole."""
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not the configuration of a run: {error}") from error
    return from_dict(document, str(path))
