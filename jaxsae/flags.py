"""How configurations become flags: what is shared by everything that can be chosen by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import tyro

# Of a nested configuration, `Annotated[SomeConfig, FLAT]`: its flags have no prefix.
FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True)
class NoFlags:
    """The configuration of an entry that has no flags of its own."""


def groups(name: str, registry: Mapping[str, Any], module: str) -> type:
    """A frozen dataclass `name` with one field, and so one group of flags, for each entry whose `Config` has flags.

    It must be bound to `name` in `module`, where pickle, which processes need, looks for it.
    """
    fields = [
        (key, entry.Config, field(default_factory=entry.Config))
        for key, entry in registry.items()
        if entry.Config is not NoFlags
    ]
    kind = make_dataclass(name, fields, frozen=True)
    kind.__module__ = module
    return kind


def spaced(flag: str, args: Sequence[str]) -> list[str]:
    """A command line with FLAG A in place of FLAG=A, so that more values may follow."""
    start = f"{flag}="
    return [part for arg in args for part in ((flag, arg[len(start) :]) if arg.startswith(start) else (arg,))]


def several(flag: str, args: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """(the values of a flag on a command line if it has several, the command line with the first of them alone)."""
    if flag not in args:
        return (), [*args]
    start = args.index(flag) + 1
    stop = next((i for i in range(start, len(args)) if args[i].startswith("-")), len(args))
    return (tuple(args[start:stop]), [*args[: start + 1], *args[stop:]]) if stop > start + 1 else ((), [*args])
