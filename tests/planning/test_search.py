"""The search for the largest n: exact on a known limit, with few slow checks."""

from dataclasses import dataclass

import pytest

from jaxsae.errors import BadInput
from jaxsae.planning.search import grid, largest


@dataclass(frozen=True)
class Answer:
    n: int
    fits: bool
    topology: str = "v5e:4x4"


def test_grid():
    numbers = grid(2048)
    assert numbers == sorted(set(numbers))
    assert numbers[:3] == [2048, 4096, 6144]
    assert all(n % 2048 == 0 for n in numbers)
    assert {2**20, 17 * 2**16, 31 * 2**16, 2**24} <= set(numbers)


@pytest.mark.parametrize("limit", [2048, 100_000, 1_572_864, 1_572_865, 5 * 10**6, 2**40])
@pytest.mark.parametrize("guessed", [0.3, 0.99, 1.0, 2.5])
def test_finds_the_limit(limit, guessed):
    asked = []

    def check(n):
        asked.append(n)
        return Answer(n, n <= limit)

    found = largest(lambda n: Answer(n, n <= guessed * limit), check, 2048)
    assert found.n == max(n for n in grid(2048) if n <= limit)
    assert len(asked) == len(set(asked))
    # Doubling steps of a sixteenth, then bisection: a guess that is 2.5 times wrong costs a few more.
    assert len(asked) <= (3 if guessed == 1.0 else 10)


def test_nothing_fits():
    with pytest.raises(BadInput, match="not even 2048 latents fit v5e:4x4"):
        largest(lambda n: Answer(n, False), lambda n: Answer(n, False), 2048)
