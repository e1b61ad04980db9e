"""Runs that are trained side by side, and how each of them ends."""

from collections.abc import Callable, Mapping

from jaxsae.config import Config
from jaxsae.distributed import processes
from jaxsae.errors import Interrupted


class NoneLeft(Exception):
    """All runs have failed."""


class RunsFailed(Exception):
    """Some runs failed, or could not be trained; the others are done."""


class Runs:
    """Runs that are trained side by side, by name. One that fails is left out from there on, and the others go on.

    `outcomes` are the summaries of those that are done and the errors of those that failed, which are raised instead if
    `raises`. Among several processes an error that they may not share ends all.
    """

    def __init__(
        self,
        configs: Mapping[str, Config],
        on_done: Callable[[str, dict | Exception], None] = lambda name, outcome: None,
        raises: bool = False,
    ):
        self.going, self.outcomes = dict(configs), {}
        self._on_done, self._raises = on_done, raises

    def each(self, function: Callable[[str, Config], object]) -> dict:
        """{name: function(name, config)} of the runs that go on. Raises NoneLeft if all of them fail."""
        results = {}
        for name, config in list(self.going.items()):
            try:
                results[name] = function(name, config)
            except Interrupted:
                raise
            except Exception as error:
                # Another process may have got further.
                if processes.is_distributed():
                    raise
                self.done(name, error)
        if not results:
            raise NoneLeft
        return results

    def done(self, name: str, outcome: dict | Exception):
        """Note how a run ended."""
        if isinstance(outcome, Exception) and self._raises:
            raise outcome
        del self.going[name]
        self.outcomes[name] = outcome
        self._on_done(name, outcome)
