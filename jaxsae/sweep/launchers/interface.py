"""What a launcher is."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jaxsae.config import Config
from jaxsae.flags import NoFlags
from jaxsae.sweep.job import TRAIN


@dataclass(frozen=True)
class Work:
    """What is to be trained. The folder has the configurations of all runs (folder.py)."""

    out: Path
    jobs: list[list[str]]  # names of runs that are trained together, job by job
    configs: Mapping[str, Config]
    workers: int | None = None  # jobs at a time; None: what the launcher finds right
    command: list[str] = field(default_factory=list)  # the command line of this sweep, without a launcher
    train: str = TRAIN


class Pool(Protocol):
    """Jobs under way."""

    at_once: int  # how many are trained at a time

    def poll(self, seconds: float) -> bool:
        """Start what can be started, wait for at most so long; whether there is still something to do."""

    def in_hand(self) -> set[str]:
        """The runs that are being trained, or about to be."""

    def stop(self):
        """Ask all that is under way to save and end, and wait for it."""


@dataclass(frozen=True)
class Launcher:
    start: Callable[[Work, Any], AbstractContextManager[Pool]]
    """start(work, config): a context in which jobs run; what still runs at its end is ended."""
    Config: type = NoFlags
    """Its flags, `--NAME.FLAG`: a frozen dataclass."""
    alone: bool = True
    """No other sweep may work in the folder meanwhile; this one shows a table and writes results.csv."""
    waits: bool = True
    """All runs have been tried when `poll` says that nothing is left to do."""
