"""Scaling laws fitted to tables of losses, with intervals that say what the table does not tell.

    result = fit("power_irreducible", {"n": [...]}, nmse)
    result.params, result.intervals["e"], result.identifiable["e"], result.predict({"n": [65536]})

`python -c "from jaxsae.scaling import fits; print(fits.LAWS)"` lists the laws; a new one is a file with a `Law` and a
line in `LAWS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.scaling.fits import joint, power, power_irreducible
from jaxsae.scaling.fits.estimate import estimate, intervals
from jaxsae.scaling.fits.held_out import HeldOut, leave_out
from jaxsae.scaling.fits.law import Law

LAWS: dict[str, Law] = {
    "power": power.LAW,
    "power_irreducible": power_irreducible.LAW,
    "joint": joint.LAW,
    # On the points of frontier.py.
    "frontier": power_irreducible.LAW,
}
# What x is if nobody says it.
COLUMNS = {"power": ("n",), "power_irreducible": ("n",), "joint": ("n", "k"), "frontier": ("flops",)}


@dataclass(frozen=True)
class Fit:
    """A law fitted to N points."""

    law: str
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % intervals; infinite ends where the data do not bound a parameter."""
    identifiable: dict[str, bool]
    """Whether the interval is bounded and, of a floor, does not reach 0."""
    rmse_log: float
    """Root of the mean squared difference of log losses."""
    x: dict[str, np.ndarray]
    y: np.ndarray
    theta: np.ndarray
    floors: dict[float, tuple[float, float, float]] | None
    """{k: (irreducible loss, low, high)} of the joint law: with k, it is not one number."""
    held_out: HeldOut | None
    """Sizes predicted from the others; None if there are too few, or if that was not asked for."""

    def predict(self, x: Mapping[str, Sequence[float]]) -> np.ndarray:
        """The loss at columns of x, each [M]; [M]."""
        return np.exp(LAWS[self.law].log_loss(self.theta, np.log(np.stack([x[name] for name in self.x], axis=1))))

    @property
    def residuals(self) -> np.ndarray:
        """log measured - log predicted [N]."""
        return np.log(self.y) - np.log(self.predict(self.x))

    def to_json(self) -> dict:
        """The fit as a JSON object; ends that are infinite are null."""
        finite = lambda value: float(value) if np.isfinite(value) else None
        return {
            "law": self.law,
            "params": self.params,
            "intervals": {name: [finite(end) for end in ends] for name, ends in self.intervals.items()},
            "rmse_log": self.rmse_log,
            "identifiable": self.identifiable,
            "x": list(self.x),
            "points": len(self.y),
            "floors": self.floors and {f"{k:g}": list(values) for k, values in self.floors.items()},
            "held_out": self.held_out and self.held_out.to_json(),
        }


def fit(law: str, x: Mapping[str, Sequence[float]], y: Sequence[float], held_out: bool = True) -> Fit:
    """The law of that name fitted to losses y [N] at columns x, each [N], in the law's order.

    With `held_out` each value of the first column is predicted from the others, which takes a fit for each.

    Raises BadInput for numbers that are not above 0, and for too few of them.
    """
    if law not in LAWS:
        raise BadInput(f"--law {law} is unknown: allowed are {', '.join(LAWS)}")
    kind = LAWS[law]
    columns = {name: np.asarray(column, float) for name, column in x.items()}
    y = np.asarray(y, float)
    _check_numbers(columns | {"the loss": y})
    _check_enough(law, columns, len(y))
    log_x = np.log(np.stack(list(columns.values()), axis=1))
    found = estimate(kind, log_x, np.log(y)[None])
    theta = found.theta[0]
    reported = lambda values: {
        name: kind.reported(name, value) for name, value in zip(kind.parameters, values, strict=True)
    }
    low, high = (reported(ends) for ends in intervals(found).T)
    # exp(-inf) is 0: of a logarithm no end is an end at 0.
    bounded = lambda name: np.isfinite(high[name]) and (low[name] > 0 if name in kind.logs | kind.floors else True)
    return Fit(
        law,
        reported(theta),
        {name: (low[name], high[name]) for name in kind.parameters},
        {name: bool(bounded(name) and np.isfinite(low[name])) for name in kind.parameters},
        float(np.sqrt(np.mean(found.residuals**2))),
        columns,
        y,
        theta,
        joint.floors(found, columns) if kind is joint.LAW else None,
        leave_out(found, columns) if held_out else None,
    )


def _check_numbers(columns: Mapping[str, np.ndarray]):
    for name, values in columns.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise BadInput(
                f"{name} is {values[bad[0]]:g} in point {bad[0] + 1} of {len(values)}: laws are fitted to logarithms, "
                "so give numbers above 0, or leave that row out"
            )


def _check_enough(law: str, columns: Mapping[str, np.ndarray], points: int):
    """As many points as parameters and one more, and as many values of x as tell the parameters apart."""
    p = len(LAWS[law].parameters)
    if points <= p:
        raise BadInput(f"{points} points are too few for the {p} parameters of {law}: give at least {p + 1}")
    least = (3, 2) if len(columns) > 1 else (p,)
    for (name, values), needed in zip(columns.items(), least, strict=True):
        if (distinct := len(set(values.tolist()))) < needed:
            raise BadInput(
                f"{name} has {distinct} different {'value' if distinct == 1 else 'values'} in this table: {law} needs "
                f"at least {needed}"
            )
