"""The settings of `jaxsae sweep`; each field is a flag."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from jaxsae.errors import BadInput
from jaxsae.flags import FLAT
from jaxsae.sweep.launchers import REGISTRY, LauncherConfigs


@dataclass(frozen=True)
class SweepConfig:
    file: tyro.conf.Positional[str]
    """Python that defines configs(), which returns {name: Config}; see docs/sweeps.md."""
    out: str | None = None
    """Folder to write: one folder for each run, and results.csv; default: runs/FILE, with the preset if there is one.
    A sweep that is there already is resumed."""
    preset: str | None = None
    """What configs() of the file is called with, if it takes a preset."""
    launcher: Literal[tuple(REGISTRY)] = "local"
    """local: processes on this machine; slurm, cluster: jobs through submitit (extra `sweep`); print: one shell command
    a line; here: this process, one job after another."""
    workers: int | None = None
    """Processes or jobs at a time, each on its share of the cores or devices; default: one for each device, or one for
    every four cores; on Slurm, all at once."""
    share: Literal["none", "stack", "pass"] = "none"
    """stack: runs that differ only in numbers that a compiled program can take as arguments are trained as one; pass:
    runs that read the same activations share the pass of the language model; none: each run by itself."""
    only: tuple[str, ...] = ()
    """Train only these runs of the file, by name."""
    launchers: Annotated[LauncherConfigs, FLAT] = field(default_factory=LauncherConfigs)

    def __post_init__(self):
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"--workers is {self.workers}: give at least 1")
