"""Markdown tables of the results that step, compare_peers and e2e kept.

    python -m benchmarks.table [--results FOLDER] [--write README.md]

With --write they take the place of what stands in that file between <!-- benchmarks --> and <!-- /benchmarks -->.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import common

START, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def tables(folder: Path) -> str:
    """One table for each file of results: other libraries first, then jaxsae beside its floor; smaller shapes first."""
    shapes, found = ["small", "big", "gpt2", "wide", "paper"], []
    for pattern, table in (("peers-*.json", peers_table), ("step-*.json", step_table), ("e2e-*.json", e2e_table)):
        results = [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]
        results = [result for result in results if result["rows"]]
        for result in sorted(results, key=lambda result: shapes.index(result["rows"][0]["shape"])):
            found.append(f"{caption(result['rows'][0], result['manifest'])}\n\n{table(result['rows'])}")
    return "\n\n".join(found)


def caption(row: dict, manifest: dict) -> str:
    """The shape, the machine and the code of a result."""
    device = manifest.get("device", "cpu")
    machine = f"{manifest['cpu']}, {manifest['cores']} cores" if device == "cpu" else device
    shape = row["shape"]
    sizes = row.get("sizes") or common.describe(common.SHAPES[shape])
    commit = f", commit {manifest['commit']}" if manifest["commit"] else ""
    return f"**{shape}** ({sizes}) on {machine}, {manifest['date']}{commit}:"


def peers_table(rows: list[dict]) -> str:
    """A line for each variant of a library, AuxK off and on beside each other."""
    variants = {}
    for row in rows:
        variants.setdefault((row["peer"], row["version"], row["variant"]), {})[row["aux"]] = row
    lines = []
    for (peer, version, variant), by_aux in variants.items():
        off, on = by_aux.get(False), by_aux.get(True)
        peak = max(row["device_peak_mb"] or row["peak_rss_mb"] for row in by_aux.values())
        times = [f(row) for row in (off, on) for f in (_ms, _rate, _ratio)]
        lines.append([f"{peer} {version}, {variant}", *times, f"{peak:,.0f}"])
    head = ["", *(f"{name}{aux}" for aux in ("", ", AuxK") for name in ("ms/step", "tokens/s", "× jaxsae")), "peak MB"]
    return markdown(head, lines)


def step_table(rows: list[dict]) -> str:
    """A line for each AuxK and precision of the selection."""
    head = ["AuxK", "selection", "ms/step", "floor ms", "step / floor", "tokens/s", "peak MB", "compile s"]
    lines = []
    for row in rows:
        dead = f", {row['dead']:.0%} dead" if "dead" in row else ""
        lines.append(
            [
                f"on{dead}" if row["aux"] else "off",
                row["select"],
                number(row["step_ms"]),
                number(row["floor_ms"]),
                f"{row['ratio']:.2f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['peak_mb']:,.0f}",
                f"{row['compile_s']:.1f}",
            ]
        )
    return markdown(head, lines)


def e2e_table(rows: list[dict]) -> str:
    head = ["end-to-end step", "ms/step", "floor ms", "step / floor", "tokens/s", "temporaries MB", "compile s"]
    lines = [
        [
            row["variant"],
            number(row["step_ms"]),
            number(row["floor_ms"]),
            f"{row['ratio']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['temporaries_mb']:,.0f}",
            f"{row['compile_s']:.1f}",
        ]
        for row in rows
    ]
    return markdown(head, lines)


def _ms(row: dict | None) -> str:
    return number(row["ms_min"]) if row else ""


def _rate(row: dict | None) -> str:
    return f"{row['tokens_per_second']:,.0f}" if row else ""


def _ratio(row: dict | None) -> str:
    return f"{row['ratio_to_jaxsae']:.2f}" if row and row["ratio_to_jaxsae"] else ""


def number(ms: float) -> str:
    """Three digits, or as many as stand before the point."""
    return f"{ms:,.{2 if ms < 10 else 1 if ms < 100 else 0}f}"


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rules = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rules, *lines])


def replaced(text: str, inside: str, start: str = START, end: str = END) -> str:
    """`text` with `inside` between its markers. Raises ValueError where it has not each of them once, in order."""
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"put one line {start} and after it one line {end} into the file")
    before, rest = text.split(start)
    return f"{before}{start}\n\n{inside}\n\n{end}{rest.split(end)[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of results (%(default)s)")
    parser.add_argument("--write", type=Path, help="file whose tables are replaced; default: they are printed")
    args = parser.parse_args()
    made = tables(args.results)
    if not made:
        sys.exit(f"{args.results} has no results: run step or compare_peers with --keep first")
    if args.write is None:
        print(made)
        return
    try:
        args.write.write_text(replaced(args.write.read_text(), made))
    except ValueError as error:
        sys.exit(f"{args.write}: {error}")


if __name__ == "__main__":
    main()
