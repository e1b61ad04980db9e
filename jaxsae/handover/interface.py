"""What a form of activations is to the rest of the package, and the activations themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxsae.evals.explaining import activations, on_host
from jaxsae.evals.subject import Subject
from jaxsae.flags import NoFlags


@dataclass(frozen=True)
class Handover:
    """One entry of the registry.

    write(subject, config, folder)  writes the activations of a `Subject` into a new folder; returns lines to print.
                                    The subject's mesh is set, and `config` is a `Config`
    check(subject, config)          raises BadInput for what the form cannot hold
    """

    write: Callable[[Subject, Any, Path], list[str]]
    check: Callable[[Subject, Any], None] = lambda subject, config: None
    Config: type = NoFlags


@dataclass(frozen=True)
class Activations:
    """Every value above 0 of C contexts of T tokens, in the order of contexts and positions; N values in all."""

    tokens: np.ndarray  # [C, T] int64, 0 for padding
    context: np.ndarray  # [N] int32
    position: np.ndarray  # [N] int32
    latent: np.ndarray  # [N] int32
    value: np.ndarray  # [N] float32, in the units of the autoencoder


def collect(subject: Subject) -> Activations:
    """The activations of a subject's contexts. Tokens that training left out have none."""
    T, first = subject.source.rows, 0
    tokens, parts = [], []
    for batch in subject.batches(title="activations"):
        ids, kept = on_host(subject, batch)
        token, latent, value = activations(subject, batch, kept)
        columns = first + token // T, token % T, latent
        parts.append((*(column.astype(np.int32) for column in columns), value.astype(np.float32)))
        tokens.append(ids.astype(np.int64))
        first += batch.size
    return Activations(np.concatenate(tokens), *map(np.concatenate, zip(*parts)))
