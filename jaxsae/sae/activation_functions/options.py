"""What an activation function is trained with; none of it changes a value of a trained autoencoder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxsae.flags import NoFlags


@dataclass(frozen=True)
class SparsityConfig:
    """The sparsity term of families that have one."""

    penalty: str = ""
    """Sparsity term; default: the activation function's own. One of l1, lp, tanh, l0, gate."""
    exponent: float = 1.0
    """Exponent of the penalty lp."""
    tanh_scale: float = 4.0
    """Slope at 0 of the penalty tanh."""
    target_l0: float | None = None
    """The penalty becomes (penalty / target - 1)^2: with jumprelu's l0, the L0 that training steers to, and starts
    from."""


@dataclass(frozen=True)
class Options:
    """The configuration that the functions of a family see in training."""

    sparsity: SparsityConfig = SparsityConfig()
    own: Any = field(default_factory=NoFlags)  # an instance of the family's Config


@dataclass(frozen=True)
class Penalty:
    """A sparsity term: `each(v, preacts, options)` [B, c] is summed over latents, `finish(total, options)` [B] applied.

    `counts`: it counts latents (values up to 1 each), rather than adding up norms; `steers`: it is the L0.
    """

    each: Callable
    finish: Callable = lambda total, options: total
    counts: bool = False
    steers: bool = False
