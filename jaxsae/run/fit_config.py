"""The settings of `jaxsae fit`; each field is a flag."""

from dataclasses import dataclass
from typing import Literal

import tyro

from jaxsae.scaling import fits


@dataclass(frozen=True)
class FitConfig:
    table: tyro.conf.Positional[tuple[str, ...]]
    """A .csv with one row a run, such as a sweep's results.csv (n stands for its column sae.n), or, for --law frontier,
    run folders or their metrics.jsonl."""
    law: Literal[tuple(fits.LAWS)]
    """power: a x^b; power_irreducible: e + a x^b; joint: of n and k (Gao et al. 2024); frontier: e + a x^b of the least
    loss for each amount of compute."""
    x: tuple[str, ...] = ()
    """Columns of what the law is of; default: n, of joint n and k, of frontier flops (or flops_dense, tokens)."""
    y: str = "nmse"
    """Column of the loss."""
    where: tuple[str, ...] = ()
    """Take only rows with COLUMN=VALUE, all of several."""
    json: bool = False
    """Print one JSON object."""
    plot: str | None = None
    """Picture to write: points, law and residuals."""
