"""A plan as text for people, and as one object for programs."""

import dataclasses
import json

from jaxsae.planning.compiler import available
from jaxsae.planning.devices import GIB, topology
from jaxsae.planning.plan import Plan

NOTES = {
    "other": "counters, keys",
    "data": "buffered activations",
    "lm": "the language model's parameters",
    "lm_work": "roughly: parameters gathered or widened, its activations",
    "available": "of the device's memory, to JAX",
}


def to_json(plan: Plan) -> str:
    return json.dumps(dataclasses.asdict(plan))


def table(plan: Plan) -> str:
    """Sizes, bytes of a device, times of a step, what moves between devices, and the verdict."""
    d = f"{plan.d:,}" if plan.d_out is None else f"{plan.d:,} to {plan.d_out:,}"
    return "\n".join(
        [
            f"{plan.topology}: {plan.devices} devices, mesh data {plan.mesh[0]} x latent {plan.mesh[1]}",
            f"{plan.activation}, n {plan.n:,}, d {d}, k {plan.k}, batch {plan.batch_size:,} tokens",
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


def _unit(plan: Plan):
    """The unit of bytes, and a function that writes them in it."""
    unit, scale = ("GiB", GIB) if plan.bytes["total"] >= GIB else ("MiB", 2**20)
    return unit, lambda number: f"{number / scale:,.3f}"


def _bytes(plan: Plan) -> list[str]:
    unit, size = _unit(plan)
    notes = NOTES | {"temporaries": "compiled" if plan.compiled else "roughly"}
    rows = [(name, size(number), notes.get(name, "")) for name, number in plan.bytes.items()]
    if plan.compiled and plan.compiled["places"]:
        places = [("", size(place["bytes"]), place["shapes"]) for place in plan.compiled["places"][:6]]
    else:
        largest = sorted(plan.temporaries.items(), key=lambda item: -item[1])
        places = [(name, size(number), "") for name, number in largest if number]
    return _rows("memory of a device", unit, rows) + _rows("largest temporaries", unit, places)


def _times(plan: Plan) -> list[str]:
    ms = lambda name: f"{1e3 * plan.seconds[name]:,.3f}"
    flops = lambda number: f"{number / 1e12:,.4f} TFLOP of a device"
    parts = {name: flops(number) for name, number in plan.flops.items() if not name.startswith("auxk")}
    parts |= {"interconnect": "", "total": f"at most {plan.tokens_per_second:,.0f} tokens/s"}
    rows = [(name, ms(name), note) for name, note in parts.items()]
    if auxk := plan.flops["auxk_at_1_percent_dead"]:
        rows.append(("+ AuxK with 1% dead", ms("auxk_at_1_percent_dead"), flops(auxk)))
        rows.append(("+ AuxK, interconnect", ms("auxk_interconnect"), ""))
    return _rows("a step, at least", "ms", rows)


def _moves(plan: Plan) -> list[str]:
    unit, size = _unit(plan)
    rows = [(move.name, size(move.bytes), f"{move.kind} over {move.axis}") for move in plan.transfers]
    # Both branches of a condition, AuxK or not, are in a program; a loop's body is in it once.
    collectives = plan.compiled["collectives"] if plan.compiled else []
    of_program = [(f"{c['count']} {c['kind']} over {c['axis']}", size(c["bytes"]), c["shapes"]) for c in collectives]
    return _rows("collectives of a step", unit, rows) + _rows("in the compiled program", unit, of_program)


def _verdict(plan: Plan) -> list[str]:
    device, share = topology(plan.topology).device, plan.bytes["total"] / plan.bytes["available"]
    if plan.compiled:
        how = f"compiled for {plan.topology} in {plan.compiled['seconds']:.0f} s"
    else:
        how = "analytic figures" + (": nothing was compiled" if device.kind == "tpu" else "")
        if device.kind == "tpu" and not available():
            how += " (that needs libtpu: pip install jaxsae[tpu])"
    rows = [how, f"{'fits' if plan.fits else 'does not fit'}: {share:.0%} of the memory of a device that JAX can use"]
    if device.kind == "gpu" and 1 < share <= 1.2:
        rows.append("JAX uses 75% of a GPU's memory; XLA_PYTHON_CLIENT_MEM_FRACTION=.9 gives it more")
    return rows
