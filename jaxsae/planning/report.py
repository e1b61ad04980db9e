"""A plan as text for people, and as one object for programs."""

import dataclasses
import json

from jaxsae.planning.compiler import available
from jaxsae.planning.devices import GIB, topology
from jaxsae.planning.plan import Plan


def to_json(plan: Plan) -> str:
    return json.dumps(dataclasses.asdict(plan))


def table(plan: Plan) -> str:
    """Sizes, bytes of a device, times of a step, what moves between devices, and the verdict."""
    return "\n".join(
        [
            f"{plan.topology}: {plan.devices} devices, mesh data {plan.mesh[0]} x latent {plan.mesh[1]}",
            f"n {plan.n:,}, d {plan.d:,}, k {plan.k}, batch {plan.batch_size:,} tokens",
            *_bytes(plan),
            *_times(plan),
            *_moves(plan),
            "",
            *_verdict(plan),
        ]
    )


def _rows(title: str, unit: str, rows: list[tuple]) -> list[str]:
    """A titled block of (name, number as text, note)."""
    lines = [f"  {name:<30}{number:>12}{'   ' if note else ''}{note}" for name, number, note in rows]
    return ["", f"{title:<32}{unit:>12}", *lines] if rows else []


def _unit(plan: Plan) -> tuple[str, int]:
    return ("GiB", GIB) if plan.bytes_total >= GIB else ("MiB", 2**20)


def _bytes(plan: Plan) -> list[str]:
    unit, scale = _unit(plan)
    size = lambda number: f"{number / scale:,.3f}"
    names = "parameters optimizer ema other gradients temporaries batch data program total available".split()
    notes = {
        "other": "counters, keys",
        "temporaries": "compiled" if plan.compiled else "roughly",
        "data": "a chunk's activations, the language model",
        "available": "of the device's memory, to JAX",
    }
    rows = [(name, size(getattr(plan, f"bytes_{name}")), notes.get(name, "")) for name in names]
    if plan.compiled_places:
        places = [("", size(place["bytes"]), place["shapes"]) for place in plan.compiled_places[:6]]
    else:
        largest = sorted(plan.temporaries.items(), key=lambda item: -item[1])
        places = [(name, size(number), "") for name, number in largest if number]
    return _rows("memory of a device", unit, rows) + _rows("largest temporaries", unit, places)


def _times(plan: Plan) -> list[str]:
    ms = lambda seconds: f"{1e3 * seconds:,.3f}"
    flops = lambda number: f"{number / 1e12:,.4f} TFLOP of a device"
    parts = ("selection", "sparse", "optimizer")
    rows = [(name, ms(getattr(plan, f"seconds_{name}")), flops(getattr(plan, f"flops_{name}"))) for name in parts]
    rows.append(("interconnect", ms(plan.seconds_interconnect), ""))
    rows.append(("total", ms(plan.seconds), f"at most {plan.tokens_per_second:,.0f} tokens/s"))
    if plan.flops_auxk_per_percent_dead:
        more = ms(plan.seconds_auxk_per_percent_dead), flops(plan.flops_auxk_per_percent_dead)
        rows.append(("+ AuxK, per 1% dead", *more))
        rows.append(("+ AuxK, interconnect", ms(plan.seconds_auxk_interconnect), ""))
    return _rows("a step, at least", "ms", rows)


def _moves(plan: Plan) -> list[str]:
    unit, scale = _unit(plan)
    size = lambda number: f"{number / scale:,.3f}"
    rows = [(move.name, size(move.bytes), f"{move.kind} over {move.axis}") for move in plan.transfers]
    found = [
        (f"{c['count']} {c['kind']} over {c['axis']}", size(c["bytes"]), c["shapes"]) for c in plan.compiled_collectives
    ]
    # Both branches of a condition, AuxK or not, are in a program; a loop's body is in it once.
    return _rows("collectives of a step", unit, rows) + _rows("in the compiled program", unit, found)


def _verdict(plan: Plan) -> list[str]:
    device = topology(plan.topology).device
    how = f"compiled for {plan.topology} in {plan.compiled_seconds:.0f} s" if plan.compiled else "analytic figures"
    if not plan.compiled and device.kind == "tpu":
        how += ": nothing was compiled"
        how += "" if available() else " (that needs libtpu: pip install jaxsae[tpu])"
    share = plan.bytes_total / plan.bytes_available
    rows = [how, f"{'fits' if plan.fits else 'does not fit'}: {share:.0%} of the memory of a device that JAX can use"]
    if device.kind == "gpu" and 1 < share <= 1.2:
        rows.append("JAX uses 75% of a GPU's memory; XLA_PYTHON_CLIENT_MEM_FRACTION=.9 gives it more")
    return rows
