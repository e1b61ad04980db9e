"""Collectives and memory of a compiled program, from the texts that XLA writes about it."""

import math
import re
from dataclasses import dataclass

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b(pred|bf16|f8\w*|[sufc]\d+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(")


@dataclass(frozen=True)
class Collective:
    """One kind of collective of a program, over one mesh axis."""

    kind: str
    axis: str
    """`data`, `latent`, `data+latent`, or `?` where the groups are no axis of the mesh."""
    shapes: str
    """Of what each device has afterwards (of a reduce-scatter: before), the largest first."""
    bytes: int
    """Of these shapes, for one device, summed over all such collectives; a loop's counts once."""
    count: int


def size_of(shapes: str) -> int:
    """Bytes of the arrays that a type such as `(f32[8,4]{1,0}, s32[])` names."""
    total = 0.0
    for dtype, dims in _SHAPE.findall(shapes):
        each = _BYTES.get(dtype) or (1 if dtype.startswith("f8") else int(re.search(r"\d+", dtype)[0]) / 8)
        total += each * math.prod(int(d) for d in dims.split(",") if d)
    return int(total)


def collectives(text: str, mesh: tuple[int, int]) -> list[Collective]:
    """Every collective between more than one device, by kind and axis, the most bytes first."""
    members = {"data": mesh[0], "latent": mesh[1], "data+latent": math.prod(mesh)}
    found: dict[tuple[str, str], list[list[str]]] = {}
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        kind = match and match[3].removesuffix("-start")
        if kind not in KINDS or (axis := _axis(line, mesh)) is None:
            continue
        shapes = [shape[0] for shape in _SHAPE.finditer(match[2])]
        if match[3] == "all-gather-start":  # (operands, results)
            shapes = shapes[len(shapes) // 2 :]
        elif match[3] == "collective-permute-start":  # (operand, result, contexts)
            shapes = shapes[1:2]
        elif kind == "reduce-scatter":  # each result is one device's share
            shapes *= members.get(axis, 1)
        found.setdefault((kind, axis), []).append(shapes)
    rows = []
    for (kind, axis), each in found.items():
        shapes = [shape for shapes in each for shape in shapes]
        largest = sorted(dict.fromkeys(shapes), key=size_of, reverse=True)
        shown = ", ".join(largest[:3]) + (", ..." if len(largest) > 3 else "")
        rows.append(Collective(kind, axis, shown, sum(map(size_of, shapes)), len(each)))
    return sorted(rows, key=lambda row: -row.bytes)


def _axis(line: str, mesh: tuple[int, int]) -> str | None:
    """The mesh axis over which a collective goes; None where each device is alone."""
    groups = _groups(line, math.prod(mesh))
    if groups is None:
        return "?"
    if all(len(group) == 1 for group in groups):
        return None
    ids = np.arange(math.prod(mesh)).reshape(mesh)
    as_set = lambda rows: {frozenset(int(i) for i in row) for row in rows}
    axes = {"data": ids.T, "latent": ids, "data+latent": ids.reshape(1, -1)}
    return next((name for name, rows in axes.items() if as_set(rows) == as_set(groups)), "?")


def _groups(line: str, devices: int) -> list[list[int]] | None:
    """Device groups of a collective, in whichever of XLA's notations."""
    if match := re.search(r"replica_groups=\{(\{[\d,{} ]*\})?\}", line):
        rows = re.findall(r"\{([\d, ]+)\}", match[1] or "")
        return [[int(i) for i in row.split(",")] for row in rows] or [list(range(devices))]
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        return _order(match[3], devices).reshape(int(match[1]), int(match[2])).tolist()
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\) ?(?=\{))? ?\{([^}]*)\}", line):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        chosen = [list(axes).index(name) for name in re.findall(r"'(\w+)'", match[3])]
        ids = _order(match[2], devices).reshape(tuple(axes.values()))
        rest = [a for a in range(len(axes)) if a not in chosen]
        return ids.transpose(rest + chosen).reshape(-1, math.prod(ids.shape[a] for a in chosen)).tolist()
    if match := re.search(r"source_target_pairs=\{([\d,{} ]*)\}", line):
        return [[int(i) for i in row.split(",")] for row in re.findall(r"\{([\d, ]+)\}", match[1])]
    return None


def _order(said: str | None, devices: int) -> np.ndarray:
    """Devices in the order of `[2,4]T(1,0)` (counted in that shape, then transposed), of a list, or as they are."""
    if not said:
        return np.arange(devices)
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", said)
    if not match:
        return np.array([int(i) for i in said.split(",")])
    ids = np.arange(devices).reshape([int(d) for d in match[1].split(",")])
    return (ids.transpose([int(a) for a in match[2].split(",")]) if match[2] else ids).reshape(-1)


def memory_report(text: str, count: int = 8) -> tuple[int | None, list[dict]]:
    """Of XLA's memory usage report: bytes of arguments and temporaries, and the largest places among the latter.

    Each place holds several arrays, one after the other.
    """
    total = re.search(r"^Total bytes: (\d+)", text, re.MULTILINE)
    # cumulative; size; offset; number of arrays; their shapes
    rows = re.findall(r"^ *\S+\( *\d+%\); +([\d.]+)([KMGT]?i?B); +\d+; +\d+; (.+)$", text, re.MULTILINE)
    units = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    places = [{"bytes": int(float(size) * units[unit]), "shapes": shapes} for size, unit, shapes in rows]
    return (int(total[1]) if total else None), sorted(places, key=lambda place: -place["bytes"])[:count]
