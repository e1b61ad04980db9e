"""The largest number of latents that fits a topology."""

from bisect import bisect_left
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
    """The same run with n latents; Matryoshka prefixes that are too long become n."""
    prefixes = (*(m for m in config.sae.prefixes if m < n), n) if config.sae.prefixes else ()
    return replace(config, sae=replace(config.sae, n=n, prefixes=prefixes))


def largest(guess: Callable[[int], Plan], check: Callable[[int], Plan], unit: int) -> Plan:
    """The plan of the largest n that fits by `check`, which is slow; `guess`, which is fast, says where to begin.

    From the guess in steps that double, then bisected. Raises BadInput if not even `unit` latents fit.
    """
    numbers, plans = grid(unit), {}
    below, above, step = -1, len(numbers), 1
    at = max(0, bisect_left(numbers, True, key=lambda n: not guess(n).fits) - 1)
    while above - below > 1:
        plans[at] = check(numbers[at])
        below, above = (at, above) if plans[at].fits else (below, at)
        if below >= 0 and above < len(numbers):
            at = (below + above) // 2
        else:
            at = min(max(at + step if plans[at].fits else at - step, 0), len(numbers) - 1)
            step *= 2
    if below < 0:
        raise BadInput(
            f"not even {numbers[0]} latents fit {plans[0].topology}: give a smaller --batch-size or --buffer-batches"
        )
    return plans[below]
