"""Markdown tables of what quality.py kept.

    python -m benchmarks.quality_table [--results FOLDER] [--write FILE.md]

With --write they take the place of what stands in that file between <!-- quality --> and <!-- /quality -->.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import common
from benchmarks.table import caption, markdown, number, replaced

START, END = "<!-- quality -->", "<!-- /quality -->"

LEGEND = """FVU is the share of the variance of the held-out activations that the reconstruction misses; centred FVU
the same after the mean over the channels is taken from each activation and each reconstruction. Delta CE and KL are of
the language model with the reconstruction in place of the activation, in nats per token. × jaxsae is the ratio to
jaxsae's default. Bold is the best of a library's rates; an arrow says that it is the smallest (←) or the largest (→)
that was tried, so that another may be better."""

HEAD = (
    "",
    "learning rate",
    "FVU",
    "× jaxsae",
    "centred FVU",
    "delta CE",
    "× jaxsae",
    "KL",
    "× jaxsae",
    "L0",
    "dead %",
    "training s",
)


def compared(rows: list[dict]) -> list[dict]:
    """Rows with their FVU, delta CE and KL divided by those of jaxsae's default (the first), and which is the best by
    FVU of each library's rates; "edge": it is the smallest or the largest of several, so that another may be better.
    """

    def ratio(row: dict, name: str) -> float | None:
        # Where a model is poor, a reconstruction may predict better than the activation: no ratio says how much worse.
        value, ours = row.get(name), rows[0].get(name)
        return value / ours if value is not None and ours is not None and min(value, ours) > 0 else None

    ratios = [row | {f"{name}_ratio": ratio(row, name) for name in ("fvu", "delta_ce", "kl")} for row in rows]
    for peer in {row["peer"] for row in ratios}:
        factors = sorted(row["factor"] for row in ratios if row["peer"] == peer)
        trained = [row for row in ratios if row["peer"] == peer and row["trouble"] is None]
        if trained:
            best = min(trained, key=lambda row: row["fvu"])
            edges = {factors[0]: "smallest", factors[-1]: "largest"} if len(factors) > 1 else {}
            best |= {"best": True, "edge": edges.get(best["factor"])}
    return ratios


def cells(row: dict) -> list[str]:
    """The line of a row of `compared`, as HEAD says."""
    best = row.get("best")
    name, *variant = row["title"].split(", ")
    title = ", ".join([f"{name} {row.get('version', '')}".strip(), *variant])
    factor = "default" if row["factor"] == 1 else f"× {row['factor']:.3g}"
    rate = f"{row['lr']:.2e} ({factor})" if "lr" in row else factor
    rate += {"smallest": " ←", "largest": " →"}.get(row.get("edge"), "")
    if row["trouble"] is not None:
        return [title, rate, "failed", *[""] * (len(HEAD) - 3)]
    form = lambda name, form: "" if row.get(name) is None else format(row[name], form)
    fvu = form("fvu", ".4f")
    return [
        title,
        rate,
        f"**{fvu}**" if best else fvu,
        form("fvu_ratio", ".3f"),
        form("nmse", ".4f"),
        form("delta_ce", ".4f"),
        form("delta_ce_ratio", ".2f"),
        form("kl", ".4f"),
        form("kl_ratio", ".2f"),
        form("l0", ".1f"),
        f"{100 * row['dead']:.1f}",
        number(row["seconds"]),
    ]


def quality_table(rows: list[dict]) -> str:
    return markdown(HEAD, [cells(row) for row in rows])


def tables(folder: Path) -> str:
    """What the tables say, and one for each file of results; nothing if there are none."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("quality-*.json"))]
    captioned = [f"{caption(kept['rows'][0], kept['manifest'])}\n\n{quality_table(kept['rows'])}" for kept in results]
    return "\n\n".join([LEGEND, *captioned]) if captioned else ""


def with_tables(path: Path, inside: str) -> str:
    """The text of a file with `inside` between its markers. Raises ValueError if it has none."""
    try:
        return replaced(path.read_text(), inside, START, END)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write(path: Path, folder: Path):
    """Put the tables of a folder of results between the markers of a file. Raises ValueError if it has none."""
    path.write_text(with_tables(path, tables(folder)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of results (%(default)s)")
    parser.add_argument("--write", type=Path, help="file whose tables are replaced; default: they are printed")
    args = parser.parse_args()
    if not (made := tables(args.results)):
        sys.exit(f"{args.results} has no results: run benchmarks.quality with --keep first")
    if args.write is None:
        print(made)
        return
    try:
        write(args.write, args.results)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
