"""jaxsae's step as `jaxsae train` compiles it, without what the peers' steps here leave out: EMA and decoder norms."""

import jax

from benchmarks.common import Shape
from benchmarks.jaxsae_step import make_case
from benchmarks.peers.protocol import Built
from jaxsae.training.config import SAEConfig, TrainingConfig

PACKAGES = ("jaxsae", "jax", "jaxlib")


def build(settings: dict) -> Built:
    shape = Shape(*(settings[name] for name in ("d", "n", "k", "B", "k_aux")))
    sae = SAEConfig(n=shape.n, k=shape.k, normalise="none", decoder="free", select=settings["precision"])
    training = TrainingConfig(
        tokens=10**9,
        batch_size=shape.B,
        lr=settings["lr"],
        auxk_coef=1 / 32 if settings["aux"] else 0.0,
        k_aux=shape.k_aux,
        # No other latent dies during the measurement.
        dead_after=10**8,
        ema=0.0,
        mesh=(1, 1),
    )
    case = make_case(shape, sae, training, settings["dead"] if settings["aux"] else 0.0)
    state, device = [case.state], jax.devices()[0]

    def step() -> float:
        with jax.set_mesh(case.mesh):
            state[0], metrics = case.step(state[0], case.x, case.hyper)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    if device.platform == "cpu":
        return Built(step, device.device_kind)
    return Built(step, device.device_kind, lambda: device.memory_stats()["peak_bytes_in_use"] / 1e6)
