"""The command `jaxsae plan`, from a configuration to a plan."""

import sys
from dataclasses import replace

import jax

from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.planning import compiler, search
from jaxsae.planning.devices import EXAMPLES, Topology, topology, topology_of
from jaxsae.planning.plan import Plan, plan
from jaxsae.planning.width import lm_config, widths


def run(config: Config, name: str | None, d: int | None, largest: bool, compile: bool) -> Plan:
    """The plan of one run, or that of the largest n. Raises BadInput."""
    if config.training.objective != "local":
        raise BadInput(
            f"--objective {config.training.objective} cannot be planned: the language model's part of its steps is not "
            "counted; plan the same autoencoder with --objective local"
        )
    if name is not None:
        # Nothing here needs this machine's accelerator, which may be at work.
        jax.config.update("jax_platforms", "cpu")
    where = topology(name) if name is not None else _here()
    # A width that is given is that of both places of a transcoder.
    lm, d_out = None, d if config.lm.hook_out else None
    if d is None:
        d, d_out = widths(config)
        lm = lm_config(config) if config.data.activations is None else None
    compile = compile and where.device.kind == "tpu" and compiler.available()

    def at(n: int, compile: bool) -> Plan:
        if compile:
            print(f"compiling for {where.name}, n {n:,}, k {config.sae.k}", file=sys.stderr, flush=True)
        return plan(search.with_n(config, n), where, d, lm, compile, d_out)

    if not largest:
        return at(config.sae.n, compile)
    # A multiple of 128 latents on every device, whatever the mesh.
    unit = 128 * (config.training.batch.mesh[1] if config.training.batch.mesh else where.count)
    config = replace(config, sae=replace(config.sae, k=min(config.sae.k, unit)))
    return search.largest(lambda n: at(n, False), lambda n: at(n, compile), unit)


def _here() -> Topology:
    """This machine's accelerators."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        raise BadInput(f"--topology is not given, and this machine has no accelerator: give one, such as {EXAMPLES}")
    return topology_of(device.device_kind, jax.device_count(), jax.process_count())
