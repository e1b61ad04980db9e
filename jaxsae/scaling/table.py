"""Tables of losses: a .csv whose columns are named as fields of a configuration are, such as a sweep's results.csv."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput

# Of rows that differ in these, a law of anything else says nothing, unless it is one of its columns.
TOLD_APART = ("n", "k", "activation", "objective", "hook", "lm")
# What a sweep says of its runs, and of those that have results.
STATUS, DONE = "status", "done"
# Rows with the same values here are one run, logged several times: the first that a table has of those that name runs.
RUN_NAMES, RUN_COLUMNS = ("run", "name"), ("n", "k", "seed")


@dataclass(frozen=True)
class Table:
    """Rows {column: text} of a file."""

    source: str
    rows: list[dict[str, str]]

    def column(self, name: str) -> str | None:
        """The column that is meant by a name or by the last part of one, `sae.n` by n; None if there is none."""
        names, last = list(self.rows[0]), lambda c: c.rpartition(".")[2]
        return name if name in names else next((c for c in names if last(c) == last(name)), None)

    def numbers(self, name: str) -> np.ndarray:
        """A column [N] of numbers. Raises BadInput if there is none, or if it holds what is no number."""
        column = self.column(name)
        if column is None:
            raise BadInput(f"{self.source} has no column {name}: it has {', '.join(self.rows[0])}")
        values = []
        for line, row in enumerate(self.rows, 2):
            try:
                values.append(float(row[column]))
            except (TypeError, ValueError) as error:
                raise BadInput(
                    f"{self.source} has {column} {row[column]!r} in line {line}{_named(row)}, which is no number: "
                    "leave that row out"
                ) from error
            if not np.isfinite(values[-1]):
                raise BadInput(
                    f"{self.source} has {column} {row[column]} in line {line}{_named(row)}: leave that row out"
                )
        return np.array(values)

    def finished(self) -> tuple["Table", list[str]]:
        """The rows of runs that are done, and the names of the others. Raises BadInput if there are only others."""
        if STATUS not in self.rows[0]:
            return self, []
        done = [row for row in self.rows if row[STATUS] == DONE]
        if not done:
            raise BadInput(f"{self.source} has no run that is done")
        return Table(self.source, done), [next(iter(row.values())) for row in self.rows if row[STATUS] != DONE]

    def where(self, conditions: Sequence[str]) -> "Table":
        """The rows that fulfil all conditions COLUMN=VALUE. Raises BadInput if there are none, or no such column."""
        rows = self.rows
        for condition in conditions:
            name, equals, value = condition.partition("=")
            column = self.column(name)
            if not equals or column is None:
                raise BadInput(
                    f"--where {condition} is not understood: give COLUMN=VALUE, of {', '.join(self.rows[0])}"
                )
            kept = [row for row in rows if _same(row[column], value)]
            if not kept:
                has = ", ".join(dict.fromkeys(str(row[column]) for row in rows))
                raise BadInput(f"--where {condition} leaves no row of {self.source}: {column} has {has}")
            rows = kept
        return Table(self.source, rows)

    def check_alike(self, x: Sequence[str]):
        """Raises BadInput if rows differ in what the loss depends on and the law does not."""
        own = {self.column(name) for name in x}
        for name in TOLD_APART:
            column = self.column(name)
            if column is None or column in own:
                continue
            if len(values := list(dict.fromkeys(row[column] for row in self.rows))) > 1:
                raise BadInput(
                    f"{self.source} has rows with {column} {', '.join(map(str, values))}, and the law is one of "
                    f"{', '.join(x)} alone: choose with --where {name}={values[0]}"
                )

    def runs(self) -> list[np.ndarray]:
        """Row numbers of each run. Every row is one of its own if no column tells runs apart."""
        names = [c for c in map(self.column, RUN_NAMES) if c][:1] or [c for c in map(self.column, RUN_COLUMNS) if c]
        groups: dict[tuple, list[int]] = {}
        for number, row in enumerate(self.rows):
            groups.setdefault(tuple(row[c] for c in names) or (number,), []).append(number)
        return [np.array(numbers) for numbers in groups.values()]


def read(path: Path) -> Table:
    """The table in a .csv file. Raises BadInput if it has no rows, or some of another length than its header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    if not rows:
        raise BadInput(f"{path} has no rows: give a .csv with a line of column names and a line for each run")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise BadInput(f"{path} has more than one column called {', '.join(twice)}: give each a name of its own")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise BadInput(f"{path} has another number of columns in line {line} than in its first line")
    return Table(str(path), rows)


def _named(row: dict[str, str]) -> str:
    """Which run a row is of, in words."""
    return next((f" ({row[name]})" for name in RUN_NAMES if name in row), "")


def _same(text: str, value: str) -> bool:
    """Whether two texts are the same word or the same number."""
    try:
        return float(text) == float(value)
    except ValueError:
        return text == value
