"""Cases that only `pytest -m ""` runs: heavier combinations of what other cases cover."""

import pytest


def slow(*values):
    """A case of `pytest.mark.parametrize` with these values."""
    return pytest.param(*values, marks=pytest.mark.slow)
