"""How configurations become flags: what is shared by everything that can be chosen by name."""

from collections.abc import Mapping
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
