"""What a scaling law is: a record of pure functions. N points, q columns of x, p parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """A law's parameters, its logarithm and its derivatives; leading axes `...` are many parameter vectors at once.

    Inside, positive parameters that may be any size are logarithms: `logs` names them.
    """

    formula: str
    parameters: tuple[str, ...]
    """Names as reported, [p], in the order of the arrays."""
    log_loss: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(theta [..., p], log x [N, q]) -> log L [..., N]; not finite where L is not positive."""
    jacobian: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(theta [..., p], log x [N, q]) -> d log L / d theta [..., N, p]."""
    starts: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(log x [N, q], log L [..., N]) -> starts [..., S, p]."""
    logs: frozenset[str] = frozenset()
    floors: frozenset[str] = frozenset()
    """Parameters that are bounded below by 0, and are not identified if their interval reaches it."""
    without_floor: "Law | None" = None
    """The same law without its irreducible term; None if it has none."""

    @property
    def lower(self) -> np.ndarray:
        """Lower bounds of the parameters [p]."""
        return np.array([0.0 if name in self.floors else -np.inf for name in self.parameters])

    def reported(self, name: str, value: float) -> float:
        """A parameter as it is reported, from what stands in theta."""
        with np.errstate(over="ignore"):
            return float(np.exp(value)) if name in self.logs else float(value)


def least_squares(A: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The coefficients [..., p] that bring A [N, p] times them nearest to y [..., N]."""
    return y @ np.linalg.pinv(A).T
