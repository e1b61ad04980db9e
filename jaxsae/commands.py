"""The commands of `jaxsae`, one class each: its flags, and what it calls. cli.py parses command lines into them.

Whatever takes long to import is imported when a command runs, so that --help and refusals come at once.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxsae import evals, handover, interop
from jaxsae.config import Config
from jaxsae.data.config import PrepareConfig
from jaxsae.distributed import processes
from jaxsae.distributed.processes import DistributedConfig
from jaxsae.flags import FLAT
from jaxsae.interop.interface import Given
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.fit_config import FitConfig
from jaxsae.run.harvest_config import HarvestConfig
from jaxsae.sweep.config import SweepConfig


class EvaluationsFailed(Exception):
    """Some evaluations failed; what the others measured is saved."""


Debug = Annotated[bool, tyro.conf.arg(help="Show tracebacks.")]


@dataclass(frozen=True)
class Train:
    """Train a sparse autoencoder on a language model's activations, evaluate it and save it.

    Without any flag: a TopK autoencoder of the embedded language model, on the source files of the standard library.
    """

    settings: Annotated[Config, FLAT] = field(default_factory=Config)
    config: str | None = None
    """Defaults of all other flags from a config.json, of a run or written by hand."""
    preset: str | None = None
    """Defaults of all other flags from a published run, or from its small twin: see jaxsae/presets.py."""
    sites: str | None = None
    """Train several autoencoders from one pass of the language model: a JSON file with a list of objects, each with a
    name, and what differs from the other flags, such as {"name": "small", "hook": "...", "sae.n": 512}."""
    hooks: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.record import table
        from jaxsae.run.train import say_without_effect, started, train

        config = started(self.settings)
        if self.sites or self.hooks:
            from jaxsae.run.sites import train_several

            return train_several(config, self.hooks, self.sites, flags)
        say_without_effect([config], flags)
        summary = train(config, {flag.removeprefix("--") for flag in flags})
        if processes.is_primary():
            print(table(summary))
            print(f"\nsaved in {config.run}: sae/, summary.json, training.png")


@dataclass(frozen=True)
class Eval:
    """Evaluate a run or an exported autoencoder on held-out text; prints a table, writes eval.json into its folder."""

    folder: tyro.conf.Positional[str]
    """Run folder, or a folder with an exported autoencoder."""
    metrics: tuple[Literal[("all", *evals.EVALUATIONS)], ...] = ("standard",)
    """Evaluations by name; all: those that can be computed here."""
    out: str | None = None
    """Folder to write eval.json into; default: the evaluated one, or that of the evaluated file."""
    on: Annotated[EvalConfig, FLAT] = field(default_factory=EvalConfig)
    evaluations: Annotated[evals.EvaluationConfigs, FLAT] = field(default_factory=evals.EvaluationConfigs)
    distributed: Annotated[DistributedConfig, FLAT] = field(default_factory=DistributedConfig)
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.compiled import keep_compiled
        from jaxsae.run.evaluate import evaluate
        from jaxsae.run.record import table
        from jaxsae.run.saved import config_of

        processes.start(self.distributed)
        path = Path(self.folder)
        keep_compiled(config_of(path).data.cache)
        # A file has no room for results: they go beside it.
        out = Path(self.out) if self.out else path.parent if path.is_file() else path
        results = evaluate(path, self.on, self.metrics, self.evaluations, out)
        if processes.is_primary():
            print(table(results))
            print(f"\nsaved in {out}: eval.json, eval/report.html")
        if failed := results.get("failed"):
            raise EvaluationsFailed("; ".join(f"{name} failed: {reason}" for name, reason in failed.items()))


@dataclass(frozen=True)
class Compare:
    """Put the evaluations of several folders side by side, on one page."""

    folders: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or folders with an eval.json."""
    out: str = "compare"
    """Folder to write compare.html into."""
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.report import compare

        print(f"saved in {compare([Path(folder) for folder in self.folders], Path(self.out))}")


@dataclass(frozen=True)
class Export:
    """Write a checkpoint of a run as an autoencoder: sae.safetensors and config.json."""

    folder: tyro.conf.Positional[str]
    """Run folder."""
    step: int | None = None
    """Step of the checkpoint; default: the newest."""
    out: str | None = None
    """Folder to write; default: sae/ in the run folder, or sae-STEP/ with --step."""
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.export import export

        print(f"saved in {export(Path(self.folder), self.step, self.out and Path(self.out))}")


@dataclass(frozen=True)
class Convert:
    """Write an autoencoder, of a run or of another library, in the format of another library, or in jaxsae's."""

    source: tyro.conf.Positional[str]
    """Run folder, a file or folder of a known format, or a name on the hub."""
    out: tyro.conf.Positional[str]
    """Folder to write; it must not be there yet."""
    to: Literal[interop.WRITTEN]
    """Format to write."""
    file: str | None = None
    """File or folder inside SOURCE, as of a name on the hub."""
    of: Annotated[Literal[tuple(interop.FORMATS)] | None, tyro.conf.arg(name="from")] = None
    """Format of SOURCE; default: recognised by its files."""
    given: Annotated[Given, FLAT] = field(default_factory=Given)
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.convert import convert

        for note in convert(self.source, Path(self.out), self.to, self.file, self.of, self.given):
            print(f"jaxsae: {note}")
        print(f"saved in {self.out}")


@dataclass(frozen=True)
class Prepare:
    """Tokenise a text before runs need it, also on several hosts; what was stopped goes on where it was."""

    text: Annotated[PrepareConfig, FLAT] = field(default_factory=PrepareConfig)
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.prepare import prepare

        print(prepare(self.text))


@dataclass(frozen=True)
class PlanCommand:
    """Say whether a run fits devices that need not be here, and how long its steps take at least.

    With libtpu (pip install jaxsae[tpu]) the step is compiled for a TPU; else all is counted from formulas.
    """

    settings: Annotated[Config, FLAT] = field(default_factory=Config)
    config: str | None = None
    """Defaults of all other flags from a config.json, of a run or written by hand."""
    preset: str | None = None
    """Defaults of all other flags from a published run, or from its small twin: see jaxsae/presets.py."""
    topology: str | None = None
    """Devices: v4, v5e, v5p, v6e or tpu7x with the shape of a slice (v5p:4x4x4), or GPUs by number and hosts (h100:8,
    h100:2x8); default: those of this machine."""
    d_model: int | None = None
    """Width of the activations, of a transcoder at both places; default: that of --activations or of the language
    model."""
    json: bool = False
    """Print one JSON object."""
    find_largest_n: bool = False
    """Plan the largest --sae.n that fits."""
    compile: bool = True
    """Compile for TPUs if libtpu is installed."""
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.planning import command, report

        plan = command.run(self.settings, self.topology, self.d_model, self.find_largest_n, self.compile)
        print(report.to_json(plan) if self.json else report.table(plan))


@dataclass(frozen=True)
class Harvest:
    """Write a language model's activations to files, once, for many runs.

    A harvest that was stopped goes on when the same command is given again.
    """

    on: Annotated[HarvestConfig, FLAT]
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.compiled import keep_compiled
        from jaxsae.run.harvest import harvest

        keep_compiled(self.on.data.cache)
        done = harvest(self.on)
        out = self.on.out
        print("\n".join(f"--activations {out if len(done.hooks) == 1 else f'{out}#{hook}'}" for hook in done.hooks))


@dataclass(frozen=True)
class Activations:
    """Write the activations of latents on a text in the form that another tool reads: delphi, Neuronpedia."""

    folder: tyro.conf.Positional[str]
    """Run folder, or a folder with an exported autoencoder."""
    out: tyro.conf.Positional[str]
    """Folder to write; it must not be there yet."""
    to: Literal[tuple(handover.FORMATS)]
    """Tool to write for: delphi, its activation cache; neuronpedia, a folder to import."""
    on: Annotated[EvalConfig, FLAT] = field(default_factory=EvalConfig)
    formats: Annotated[handover.HandoverConfigs, FLAT] = field(default_factory=handover.HandoverConfigs)
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.activations import activations

        print("\n".join(activations(Path(self.folder), Path(self.out), self.to, self.on, self.formats)))


@dataclass(frozen=True)
class Fit:
    """Fit a scaling law to the table of a sweep, with intervals; --law frontier also to the folders of runs."""

    on: Annotated[FitConfig, FLAT]
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.run.fit import run

        run(self.on)


@dataclass(frozen=True)
class Sweep:
    """Train many runs, several at a time; the same command resumes a sweep that was stopped."""

    on: Annotated[SweepConfig, FLAT]
    debug: Debug = False

    def __call__(self, flags: set[str]):
        from jaxsae.sweep.command import run

        run(self.on)


COMMANDS: dict[str, type] = {
    "train": Train,
    "eval": Eval,
    "compare": Compare,
    "export": Export,
    "convert": Convert,
    "activations": Activations,
    "prepare": Prepare,
    "harvest": Harvest,
    "plan": PlanCommand,
    "fit": Fit,
    "sweep": Sweep,
}
