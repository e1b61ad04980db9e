"""DIR/results.csv: one row for each run of a sweep."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from jaxsae.config import Config, fields_of
from jaxsae.io import atomic
from jaxsae.sweep import folder as folders
from jaxsae.sweep.grids import NOT_SWEPT

# Columns that are there even if all runs have the same in them: fits over sizes ask for them.
ALWAYS = ("sae.n", "sae.k", "seed")


def varied(runs: Mapping[str, Config]) -> dict[str, dict]:
    """{name: {column: value}} of the fields that differ between runs, and of those that are always there.

    A column is called by the last part of the field's name, n for sae.n, if no other field ends so.
    """
    every = {name: fields_of(config) for name, config in runs.items()}
    first = next(iter(every.values()))
    short = lambda key: key.rpartition(".")[2]
    ends = [short(key) for key in first]
    labels = {
        key: short(key) if ends.count(short(key)) == 1 else key
        for key in first
        if key not in NOT_SWEPT and (key in ALWAYS or any(values[key] != first[key] for values in every.values()))
    }
    return {name: {label: _cell(values[key]) for key, label in labels.items()} for name, values in every.items()}


def rows(fields: Mapping[str, dict], states: Mapping[str, str], summaries: Mapping[str, dict], out: Path) -> list[dict]:
    """One row for each run: name, status, its `fields` (of `varied`), the metrics of its summary, seconds, error.

    `tokens` is the number that a run was trained on, or is to be. `seconds` are those of training, as its tokens per
    second say.
    """
    table = []
    for name, values in fields.items():
        summary = summaries.get(name, {})
        row = {"name": name, "status": states[name], **values}
        row |= {key: _cell(value) for key, value in summary.items() if not isinstance(value, dict)}
        rate = summary.get("tokens_per_second")
        row["seconds"] = round(summary["tokens"] / rate, 1) if rate and "tokens" in summary else ""
        row["error"] = folders.failure(out, name) or "" if states[name] == folders.FAILED else ""
        table.append(row)
    # The same columns in every row; what is counted here stands last.
    order = [key for key in dict.fromkeys(key for row in table for key in row) if key not in ("seconds", "error")]
    return [{key: row.get(key, "") for key in [*order, "seconds", "error"]} for row in table]


def write(table: list[dict], out: Path):
    """Write DIR/results.csv, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    atomic.write_text(out / folders.RESULTS, text.getvalue())


def _cell(value):
    if value is None:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value
