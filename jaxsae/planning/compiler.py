"""The real training step, compiled ahead of time for a TPU topology on a machine that has none. Needs `libtpu`.

The compiler runs in a process of its own (this file as a program): libtpu must be told so before JAX starts, it must
not take a TPU of this machine, and it may use much memory.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.config import Config, from_dict, to_dict
from jaxsae.errors import BadInput
from jaxsae.io import python
from jaxsae.planning import hlo
from jaxsae.planning.devices import Topology, topology
from jaxsae.training.program import make_program

# TPU_SKIP_MDS_QUERY: ask no cloud service which TPU this is. JAX_PLATFORMS: the arrays that JAX makes are the CPU's.
# ALLOW_MULTIPLE_LIBTPU_LOAD: what only compiles need not wait for a run that has this machine's TPU.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
RESULT = "jaxsae-compiled:"


def available() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def compiled(config: Config, d: int, where: Topology, mesh: tuple[int, int], d_out: int | None = None) -> dict:
    """What the compiler says of a step for TPUs, as a dictionary ready for JSON.

    bytes        its own categories and `placed`, arguments and temporaries as they lie in memory; if the step does not
                 fit, only `needed`, what it would take
    collectives  `hlo.Collective`s of the program
    places       the largest places of temporaries, and the shapes that they hold one after the other
    seconds      that it took

    Raises BadInput for a topology or a mesh that libtpu does not have, RuntimeError if the step does not compile.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as dump:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump}"
        child = subprocess.run(
            python.command("-m", "jaxsae.planning.compiler"),
            input=json.dumps({"config": to_dict(config), "d": d, "d_out": d_out, "topology": where.name, "mesh": mesh}),
            capture_output=True,
            text=True,
            errors="replace",
            env={**python.environment(), **ENVIRONMENT, "XLA_FLAGS": flags},
        )
        reports = [path.read_text() for path in Path(dump).glob("*jit_step*memory-usage-report.txt")]
    lines = [line for line in child.stdout.splitlines() if line.startswith(RESULT)]
    if not lines:
        last = (child.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"the compiler ended with status {child.returncode} and said: {last}")
    result = json.loads(lines[-1].removeprefix(RESULT)) | {"seconds": time.monotonic() - began}
    if "refused" in result:
        raise BadInput(result["refused"])
    if "failed" in result:
        raise RuntimeError(f"the step does not compile for {where.name}: {result['failed']}")
    if reports and "needed" not in result["bytes"]:
        # What is placed in memory; memory_analysis() counts some of it more than once.
        result["bytes"]["placed"], result["places"] = hlo.memory_report(reports[0])
    return result


def compile_step(config: Config, d: int, devices, mesh: tuple[int, int], d_out: int | None = None):
    """The step of `jaxsae train`, compiled for `devices`, no array made: a jax.stages.Compiled."""
    program = make_program(config.sae, config.training, d, d_out=d_out)
    mesh = jax.make_mesh(mesh, ("data", "latent"), devices=devices)
    rows = NamedSharding(mesh, P("data"))
    of_width = lambda d: jax.ShapeDtypeStruct((config.training.batch.batch_size, d), jnp.float32, sharding=rows)
    batch = (of_width(d),) if d_out is None else (of_width(d), of_width(d_out))
    with jax.set_mesh(mesh):
        return program.step.lower(program.abstract_state(mesh), batch, program.hyper).compile()


def facts(step, mesh: tuple[int, int]) -> dict:
    """`bytes`, `collectives` and `places` of a compiled step, as in `compiled`."""
    memory = step.memory_analysis()
    return {
        "bytes": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
        },
        "collectives": [dataclasses.asdict(c) for c in hlo.collectives(step.as_text(), mesh)],
        "places": [],
    }


def _describe(where: Topology) -> list:
    from jax.experimental import topologies

    # A chip of v4 is two devices unless asked otherwise; a topology of one chip needs a host of one.
    options = {"chip_config_name": "megacore"} if where.name.startswith("v4:") else {}
    host = tuple(min(a, b) for a, b in zip((*where.shape, 1), (2, 2, 1)))
    options |= {"chips_per_host_bounds": host} if host != (2, 2, 1) else {}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=where.name, **options).devices
    except Exception as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise BadInput(
            f"--topology {where.name}: libtpu knows no such slice ({error}); give one that exists"
        ) from error
    if len(devices) != where.count:
        raise RuntimeError(f"libtpu counts {len(devices)} devices in {where.name}, not {where.count}")
    return devices


def _answer(request: dict) -> dict:
    where, mesh = topology(request["topology"]), tuple(request["mesh"])
    try:
        config = from_dict(request["config"], "the request")
        devices = _describe(where)[: mesh[0] * mesh[1]]
        return facts(compile_step(config, request["d"], devices, mesh, request["d_out"]), mesh)
    except BadInput as error:
        return {"refused": str(error)}
    except NotImplementedError as error:  # jax.make_mesh: axes that do not lie in the torus
        return {"refused": f"--mesh {mesh[0]} {mesh[1]} does not lie in {where.name}: {error}"}
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            return {"failed": f"{type(error).__name__}: {error}"}
        return {"bytes": {"needed": _needed(str(error))}, "collectives": [], "places": _named(str(error))}


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)B?"


def _needed(message: str) -> int | None:
    """Bytes that the compiler's refusal names. What it calls temporaries has the arguments in it."""
    match = re.search(rf"Used {_SIZE} of|HLO temporaries \({_SIZE}\)", message)
    number, unit = [part for part in match.groups() if part is not None] if match else (None, None)
    return int(float(number) * _UNITS[unit]) if match else None


def _named(message: str) -> list[dict]:
    """The largest allocations that the compiler's refusal lists."""
    matches = re.finditer(rf"Size: {_SIZE}\n.*?Shape: ([^\s{{]+)", message, re.DOTALL)
    return [{"bytes": int(float(m[1]) * _UNITS[m[2]]), "shapes": m[3]} for m in matches][:8]


if __name__ == "__main__":
    # What libtpu prints goes to the descriptors, so the answer is a line that says what it is.
    print("\n" + RESULT + json.dumps(_answer(json.load(sys.stdin))), flush=True)
