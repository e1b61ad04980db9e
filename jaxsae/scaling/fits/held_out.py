"""Sizes predicted by a law that has not seen them: how far it is to be trusted, and whether it needs its floor."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxsae.scaling.fits.estimate import Estimate, estimate
from jaxsae.scaling.fits.law import Law


@dataclass(frozen=True)
class HeldOut:
    """Each value of the first column of x predicted from all others; N points."""

    column: str
    sizes: np.ndarray  # [N] what was left out
    measured: np.ndarray  # [N]
    predicted: np.ndarray  # [N]
    without_floor: np.ndarray | None  # [N] predicted by the law without its irreducible term, if it has one

    @property
    def rmse_log(self) -> float:
        return _rmse_log(self.predicted, self.measured)

    @property
    def prefers_floor(self) -> bool | None:
        """Whether the law with the floor predicts better; None for a law without one."""
        if self.without_floor is None:
            return None
        return self.rmse_log < _rmse_log(self.without_floor, self.measured)

    def to_json(self) -> dict:
        last = self.sizes == self.sizes.max()
        out = {
            "column": self.column,
            "rmse_log": self.rmse_log,
            "largest": {
                self.column: float(self.sizes.max()),
                "measured": self.measured[last].tolist(),
                "predicted": self.predicted[last].tolist(),
                "rmse_log": _rmse_log(self.predicted[last], self.measured[last]),
            },
        }
        if self.without_floor is not None:
            out["rmse_log_without_floor"] = _rmse_log(self.without_floor, self.measured)
            out["prefers_floor"] = self.prefers_floor
        return out


def leave_out(found: Estimate, columns: Mapping[str, np.ndarray]) -> HeldOut | None:
    """Each size of one table (T = 1) predicted from the others; None if these would be too few to fit the law."""
    name, sizes = next(iter(columns.items()))
    law, values = found.law, np.unique(sizes)
    parts = [sizes == value for value in values]
    needed = 3 if len(columns) > 1 else len(law.parameters)
    if len(values) <= needed or any((~part).sum() < len(law.parameters) for part in parts):
        return None
    predict = lambda law: np.exp(sum(_predicted(found, law, part) for part in parts))
    plain = law.without_floor and predict(law.without_floor)
    return HeldOut(name, sizes, np.exp(found.y[0]), predict(law), plain)


def _predicted(found: Estimate, law: Law, part: np.ndarray) -> np.ndarray:
    """log L [N] of the points `part`, from the others; 0 elsewhere."""
    others = estimate(law, found.x[~part], found.y[:, ~part])
    return np.where(part, law.log_loss(others.theta[0], found.x), 0.0)


def _rmse_log(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.log(measured / predicted) ** 2)))
