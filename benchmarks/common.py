"""What the benchmarks share: the shapes, data without structure, timing in turns, and the machine's manifest."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
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


def describe(shape: Shape) -> str:
    return " ".join(f"{name} {value}" for name, value in asdict(shape).items())
