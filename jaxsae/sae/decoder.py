"""What holds the rows of a decoder. n latents, d width.

unit_norm   rows are kept at norm 1 in training: projected gradient, renormalised after each step
free        nothing; sparsity terms are weighted by the norms
normalised  rows have any norm, and are divided by it wherever they are used (Braun et al. 2024)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

Decoder = Literal["unit_norm", "free", "normalised"]


def row_norms(W):
    """Norms of the rows of W [n, d], [n, 1]."""
    return jnp.sqrt((W * W).sum(-1, keepdims=True))


def section_norms(W, sections: int):
    """Norms of the `sections` equal parts of each row of W [n, sections d]: [n, sections]; zeros have no slope."""
    square = (W.reshape(len(W), sections, -1) ** 2).sum(-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def unit_rows(W):
    """Rows of W [n, d] scaled to norm 1; a row of zeros stays zero."""
    norm = row_norms(W)
    return W / jnp.where(norm > 0, norm, 1)


@dataclass(frozen=True)
class DecoderKind:
    """`as_used(W)` [n, d]: the rows that the autoencoder decodes with; `free`: whether their norms are its own;
    `constrained`: whether training keeps them at norm 1.
    """

    as_used: Callable = lambda W: W
    free: bool = False
    constrained: bool = False


KINDS: dict[str, DecoderKind] = {
    "unit_norm": DecoderKind(constrained=True),
    "free": DecoderKind(free=True),
    "normalised": DecoderKind(as_used=unit_rows),
}
