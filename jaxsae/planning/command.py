"""The command `jaxsae plan`: what it reads and prints."""

import sys
import time
from dataclasses import replace

import jax

from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.planning import compiler, report, search
from jaxsae.planning.devices import EXAMPLES, Topology, topology, topology_of
from jaxsae.planning.plan import Plan, plan
from jaxsae.planning.width import lm_bytes, lm_config, width


def run(config: Config, name: str | None, d: int | None, largest: bool, compile: bool) -> Plan:
    """The plan of one run, or that of the largest n. Raises BadInput."""
    if config.training.objective != "local":
        raise BadInput(f"--objective is {config.training.objective}: what is planned is a step of --objective local")
    if name is not None:
        # Nothing here needs this machine's accelerator, which may be at work.
        jax.config.update("jax_platforms", "cpu")
    where = topology(name) if name is not None else _here()
    held = 0
    if d is None:
        d = width(config)
        held = lm_bytes(lm_config(config)) if config.data.activations is None else 0
    compile = compile and where.device.kind == "tpu" and compiler.available()

    def at(n: int, compile: bool) -> Plan:
        some = config if n == config.sae.n else search.with_n(config, n)
        with _Progress(where, n, config.sae.k, compile) as progress:
            progress.plan = plan(some, where, d, held, compile, progress.show)
        return progress.plan

    if not largest:
        return at(config.sae.n, compile)
    # A multiple of 128 latents on every device, whatever the mesh.
    unit = 128 * (config.training.mesh[1] if config.training.mesh else where.count)
    config = replace(config, sae=replace(config.sae, k=min(config.sae.k, unit)))
    return search.largest(lambda n: at(n, False), lambda n: at(n, compile), unit)


def _here() -> Topology:
    """This machine's accelerators."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        raise BadInput(f"--topology is not given, and this machine has no accelerator: give one, such as {EXAMPLES}")
    return topology_of(device.device_kind, jax.device_count(), jax.process_count())


class _Progress:
    """What is compiled and for how long, on stderr."""

    def __init__(self, where: Topology, n: int, k: int, compile: bool):
        self.title, self.compile, self.plan = f"{where.name}, n {n:,}, k {k}", compile, None
        self.began, self.shown = time.monotonic(), False

    def show(self, seconds: float):
        if sys.stderr.isatty():
            print(f"\rcompiling for {self.title}: {seconds:.0f} s", end="", file=sys.stderr, flush=True)
            self.shown = True
        elif not self.shown:
            print(f"compiling for {self.title}", file=sys.stderr, flush=True)
            self.shown = True

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if not self.compile or self.plan is None:
            return
        verdict = "fits" if self.plan.fits else "does not fit"
        start = "\r" if sys.stderr.isatty() else ""
        seconds = time.monotonic() - self.began
        print(f"{start}compiled for {self.title}: {verdict} ({seconds:.0f} s)", file=sys.stderr, flush=True)


def text(plan: Plan, json: bool) -> str:
    return report.to_json(plan) if json else report.table(plan)
