"""Whether a claim holds, from an interval over seeds: the same rule for all experiments."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

HOLDS, DIRECTION, FAILS, OPEN, ONE = "holds", "direction only", "does not hold", "open", "not judged"
# Fewer seeds say nothing of chance.
SEEDS = 3


def interval(values: Sequence[float]) -> dict:
    """Mean and 95 % interval over seeds, by Student's t; {"mean", "low", "high", "seeds"}, no bounds for one seed.

    Raises ValueError for values that are not finite, of which nothing follows.
    """
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        raise ValueError(f"there is no interval of {values}")
    n, mean = len(values), values.mean()
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else None
    bound = lambda side: None if half is None else float(mean + side * half)
    return {"mean": float(mean), "low": bound(-1), "high": bound(1), "seeds": n}


def interval_of_ratio(values: Sequence[float]) -> dict:
    """The same of ratios: the geometric mean, from their logarithms."""
    out = interval(np.log(values))
    return {name: value if name == "seeds" or value is None else float(np.exp(value)) for name, value in out.items()}


@dataclass(frozen=True)
class Claim:
    """What a paper says, and a number that shows whether it is so here."""

    claim: str
    source: str
    theirs: str
    """The paper's number, in words."""
    measure: str
    """What `ours` is."""
    ours: dict
    """An interval over seeds."""
    above: float | None = None
    """The claim's direction holds if `ours` is above this, or below that."""
    below: float | None = None
    size: float | None = None
    """The paper's number, if it claims one: `ours` should reach it in the same direction."""
    needs: str = ""
    """What would have to be larger, if it does not hold."""

    @property
    def verdict(self) -> str:
        return verdict(self.ours, self.above, self.below, self.size)


def verdict(ours: dict, above: float | None = None, below: float | None = None, size: float | None = None) -> str:
    """HOLDS if the whole interval is on the claimed side (and, if the claim has a size, reaches it in its mean),
    FAILS if the whole interval is on the other side, OPEN if it is on both, ONE for fewer than SEEDS seeds.

        verdict({"mean": 1.2, "low": 1.1, "high": 1.3, "seeds": 3}, above=1, size=1.5)     # "direction only"
    """
    if ours["seeds"] < SEEDS or ours["low"] is None:
        return ONE
    sign, bound = (1, above) if above is not None else (-1, below)
    low, mean, high = sorted(sign * ours[name] for name in ("low", "mean", "high"))
    if low <= sign * bound:
        return FAILS if high < sign * bound else OPEN
    return DIRECTION if size is not None and mean < sign * size else HOLDS


def as_rows(claims: Sequence[Claim]) -> list[dict]:
    """Claims for a file of results, with their verdicts."""
    return [asdict(claim) | {"verdict": claim.verdict} for claim in claims]


def said(ours: dict) -> str:
    """An interval in words, with as many digits as it tells: 1.23 (1.18 to 1.28)."""
    if ours["low"] is None:
        return f"{ours['mean']:.{3 if abs(ours['mean']) < 0.1 else 2 if abs(ours['mean']) < 10 else 1}f}"
    half = (ours["high"] - ours["low"]) / 2
    digits = min(3, max(1, 1 - math.floor(math.log10(half)))) if half > 0 else 2
    number = lambda value: f"{value:.{digits}f}"
    return f"{number(ours['mean'])} ({number(ours['low'])} to {number(ours['high'])})"
