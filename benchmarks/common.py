"""What the benchmarks share: shapes, timing in turns, the command line, tables, and the machine's manifest."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Shape:
    """A training step: B tokens of width d, n latents of which k are kept, k_aux dead ones by AuxK."""

    d: int
    n: int
    k: int
    B: int
    k_aux: int


SHAPES = {
    "small": Shape(d=128, n=4096, k=16, B=4096, k_aux=64),
    "big": Shape(d=768, n=24576, k=32, B=2048, k_aux=384),
    # For big machines and GPUs.
    "wide": Shape(d=768, n=131072, k=32, B=8192, k_aux=384),
}

# Share of the latents that are dead where AuxK is measured.
DEAD = 0.1


def in_turns(variants: dict[str, Callable[[], None]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of every call of each variant, which must wait for its result. They take turns, so noise falls on all."""
    for run in variants.values():
        for _ in range(warmup):
            run()
    seconds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def manifest() -> dict:
    """The machine and the code that a result was measured with."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or None,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def keep(name: str, facts: dict, rows: list[dict]):
    """Write rows under results/ with the manifest of the machine."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"manifest": facts, "rows": rows}, indent=1) + "\n")


def print_table(columns: Mapping[str, Callable[[dict], str]], rows: list[dict]):
    """Rows as text: {title: how a row is written there}; the first column is text, the others are numbers."""
    lines = [list(columns), *([write(row) for write in columns.values()] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    for first, *numbers in lines:
        print(first.ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(numbers, widths[1:])))


def arguments(doc: str, shapes: Iterable[str], default: list[str], rounds: int) -> argparse.ArgumentParser:
    """The flags that every benchmark has; `doc` is its docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=shapes, default=default)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each variant (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/*.json")
    return parser


def run(name: str, args, measure: Callable[[str, argparse.Namespace], Iterable[list[dict]]], show: Callable):
    """Measure every shape in this process: print the tables of `measure(shape, args)`, and keep their rows if asked."""
    import jax

    device = jax.devices()[0].device_kind
    for shape in args.shape:
        rows = []
        for table in measure(shape, args):
            rows += table
            print("\n".join(map(json.dumps, table)), flush=True) if args.json else show(table)
        if args.keep:
            facts = manifest() | {"jax": jax.__version__, "device": device}
            keep(f"{name}-{shape}-{device.replace(' ', '-').lower()}", facts, rows)


def describe(shape: Shape) -> str:
    return " ".join(f"{name} {value}" for name, value in asdict(shape).items())
