"""The largest number of latents that fits a topology."""

from collections.abc import Callable
from dataclasses import replace

from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.planning.plan import Plan

# Numbers of latents are (STEPS + j) 2^e, so the answer is at most 1 / STEPS below the truth.
STEPS = 16
LARGEST = 2**36


def grid(unit: int) -> list[int]:
    """The multiples of `unit` among (STEPS + j) 2^e, below LARGEST."""
    numbers = [(STEPS + j) << e for e in range(LARGEST.bit_length() - 5) for j in range(STEPS)]
    return [n for n in numbers if n % unit == 0]


def with_n(config: Config, n: int) -> Config:
    return replace(config, sae=replace(config.sae, n=n))


def largest(guess: Callable[[int], Plan], check: Callable[[int], Plan], unit: int) -> Plan:
    """The plan of the largest n that fits by `check`, which is slow; `guess`, which is fast, says where to begin.

    From the guess in steps that double, then bisected. Raises BadInput where not even `unit` latents fit.
    """
    numbers = grid(unit)
    start = _last(numbers, lambda i: guess(numbers[i]).fits)
    plans: dict[int, Plan] = {}

    def fits(i: int) -> bool:
        if i not in plans:
            plans[i] = check(numbers[i])
        return plans[i].fits

    below, above = _bracket(start, len(numbers), fits)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    if below < 0:
        raise BadInput(f"not even {numbers[0]} latents fit {plans[0].topology}: give a smaller --batch-size or --chunk")
    return plans[below]


def _bracket(start: int, count: int, fits: Callable[[int], bool]) -> tuple[int, int]:
    """(largest known to fit, smallest known not to), -1 and `count` for none, by steps that double."""
    step = 1
    if fits(start):
        below = start
        while (i := min(below + step, count - 1)) > below and fits(i):
            below, step = i, 2 * step
        return below, i if i > below else count
    above = start
    while (i := max(above - step, 0)) < above and not fits(i):
        above, step = i, 2 * step
    return (i if i < above else -1), above


def _last(numbers: list[int], holds: Callable[[int], bool]) -> int:
    """The last index at which `holds`, true and then false, or 0."""
    low, high = 0, len(numbers)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
