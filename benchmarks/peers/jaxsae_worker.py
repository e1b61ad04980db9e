"""jaxsae's step as `jaxsae train` compiles it, without what the peers' steps here leave out: EMA and decoder norms."""

import jax

from benchmarks.jaxsae_step import configuration, make_case
from benchmarks.peers.protocol import Built
from jaxsae.sae.config import SAEConfig

PACKAGES = ("jaxsae", "jax", "jaxlib")


def build(settings: dict) -> Built:
    precision, aux = settings["precision"], settings["aux"]
    sae = SAEConfig(n=settings["n"], k=settings["k"], normalise="none", decoder="free", select_precision=precision)
    training = configuration(
        settings["B"], lr=settings["lr"], auxk_coef=1 / 32 if aux else 0.0, k_aux=settings["k_aux"], ema=0.0
    )
    run = make_case(sae, training, settings["d"], settings["dead"] if aux else 0.0).stepper()
    step, device = lambda: float(run()["loss"]), jax.devices()[0]
    if device.platform == "cpu":
        return Built(step, device.device_kind)
    return Built(step, device.device_kind, lambda: device.memory_stats()["peak_bytes_in_use"] / 1e6)
