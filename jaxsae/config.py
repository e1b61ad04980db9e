"""The whole configuration of a run, composed of what each part defines for itself. Every field is a flag."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxsae.data.config import DataConfig
from jaxsae.errors import BadInput
from jaxsae.lm.config import LMConfig
from jaxsae.processes import DistributedConfig
from jaxsae.sae import activations
from jaxsae.training.config import SAEConfig, TrainingConfig, check_pieces
from jaxsae.training.logs import LogConfig

# The fields of these become flags without a prefix.
FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Config:
    """Train a sparse autoencoder on a language model's activations."""

    run: str | None = None
    """Run folder to write; runs/<time>-<activation>-n<n>-k<k> unless given."""
    resume: bool = False
    """With --run: start, or go on from the newest checkpoint there."""
    eval_tokens: int = 65_536
    """Held-out tokens of the evaluation at the end."""
    model: Annotated[LMConfig, FLAT] = field(default_factory=LMConfig)
    data: Annotated[DataConfig, FLAT] = field(default_factory=DataConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    training: Annotated[TrainingConfig, FLAT] = field(default_factory=TrainingConfig)
    log: Annotated[LogConfig, FLAT] = field(default_factory=LogConfig)
    distributed: Annotated[DistributedConfig, FLAT] = field(default_factory=DistributedConfig)

    def __post_init__(self):
        if self.resume and self.run is None:
            raise BadInput("--resume needs --run DIR, the folder to go on with")
        check_pieces(self.sae, self.training)
        if self.training.objective != "local" and self.data.skip_first:
            raise BadInput("--skip-first leaves out tokens that an objective end to end needs: only --objective local")
        if self.eval_tokens < 1:
            raise BadInput(f"--eval-tokens is {self.eval_tokens}: give at least 1")


def without_effect(config: Config, flags: set[str]) -> list[str]:
    """Which of `flags` change nothing in such a run, and why, as lines to print."""
    sae, training = config.sae, config.training
    penalties = activations.get(sae.activation).penalties
    used = {
        "--sparsity": (penalties, f"--sae.activation {sae.activation} has no sparsity term"),
        "--k-aux": (training.auxk_weight(sae.activation), "AuxK is off, give --auxk-coef to have it"),
        "--downstream-coef": (training.objective == "e2e_downstream", f"--objective is {training.objective}"),
        "--lr-end": (training.schedule != "constant", "--schedule is constant"),
        "--resamples": (training.resample_every, "without --resample-every there are none"),
    }
    return [f"{flag} has no effect: {why}" for flag, (effect, why) in used.items() if flag in flags and not effect]


# What may differ when a run is resumed: none of it changes the result, but for float rounding on another mesh.
FREE = {
    "run",
    "resume",
    "eval_tokens",
    "log",
    "data.cache",
    "distributed",
    "sae.select_memory",
    "training.mesh",
    "training.micro_batches",
    "training.kl_chunk",
    "training.remat",
}


def to_json(config: Config) -> str:
    """What a run folder keeps: everything but how its processes were started, in which each of them differs."""
    said = {name: value for name, value in dataclasses.asdict(config).items() if name != "distributed"}
    return json.dumps(said, indent=1) + "\n"


def from_json(path: Path) -> Config:
    """The configuration saved in a run folder. Raises BadInput where there is none."""
    try:
        said = json.loads(path.read_text())
        parts = {f.name: said[f.name] for f in dataclasses.fields(Config) if f.name != "distributed"}
        kinds = {"model": LMConfig, "data": DataConfig, "sae": SAEConfig, "training": TrainingConfig, "log": LogConfig}
        parts |= {name: kind(**with_tuples(parts[name])) for name, kind in kinds.items()}
        return Config(**parts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is not the configuration of a run: {error}") from error


def with_tuples(facts: dict) -> dict:
    """Facts from JSON, which has lists where a configuration has tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


def differences(saved: Config, given: Config) -> list[str]:
    """What of `given` contradicts a saved run, as `flag: saved value, not given value`."""
    flatten = lambda c: {
        (f"{k}.{kk}" if isinstance(v, dict) else k): vv
        for k, v in dataclasses.asdict(c).items()
        for kk, vv in (v.items() if isinstance(v, dict) else [(k, v)])
    }
    a, b = flatten(saved), flatten(given)
    changed = [name for name in a if a[name] != b[name] and not {name, name.split(".")[0]} & FREE]
    flag = lambda name: "--" + (name if name.startswith("sae.") else name.split(".")[-1]).replace("_", "-")
    return [f"{flag(name)} was {a[name]}, not {b[name]}" for name in changed]
