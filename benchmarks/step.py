"""One training step beside its floor, measured in turns in one process.

    python benchmarks/step.py [--shape small big] [--rounds 10] [--json] [--keep]

The floor is the encoder's product at the precision of the selection, lax.top_k of its result, and one donated pass of
projection, Adam, renormalisation and EMA over the same parameters: what a TopK step cannot do without.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import common
from benchmarks.jaxsae_step import make_case, make_state
from jaxsae.mesh import make_mesh
from jaxsae.precision import times_rows
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.optimizer import ema_update, make_optimizer

# AuxK off; on, with a tenth of the latents dead; on, with none dead.
AUX = {"off": (0.0, 0.0), "on": (1 / 32, common.DEAD), "idle": (1 / 32, 0.0)}


def configs(shape: common.Shape, select: str, auxk_coef: float) -> tuple[SAEConfig, TrainingConfig]:
    sae = SAEConfig(n=shape.n, k=shape.k, normalise="none", select=select)
    # Counters start at zero or at the window, and no latent dies during the measurement.
    training = TrainingConfig(
        tokens=10**9, batch_size=shape.B, auxk_coef=auxk_coef, k_aux=shape.k_aux, dead_after=10**8, mesh=(1, 1)
    )
    return sae, training


def stepper(case):
    """A function that makes one step and waits for it; the state goes from call to call."""
    state = [case.state]

    def run():
        with jax.set_mesh(case.mesh):
            state[0], metrics = case.step(state[0], case.x, case.hyper)
        jax.block_until_ready((state[0], metrics))

    return run


def floor(shape: common.Shape, select: str) -> dict:
    """The parts of the floor by name, each a function that waits for its result."""
    mesh = make_mesh(1, 1)
    sae, training = configs(shape, select, 0.0)
    state = make_state(mesh, shape, sae, training)
    W, x = jnp.asarray(np.asarray(state.params.W_enc)), jax.random.normal(jax.random.key(1), (shape.B, shape.d))
    optimizer = make_optimizer(sae.decoder, eps=training.adam_eps)

    @jax.jit
    def product(x, W):
        return times_rows(x, W, select)

    @jax.jit
    def top(z):
        return lax.top_k(z, shape.k)

    @jax.jit
    def grads_like(params):
        return jax.tree.map(lambda p: 1e-3 * p, params)

    def pass_over(params, opt, ema, grads):
        updates, opt = optimizer.update(grads, opt, params, lr=1e-4)
        params = optax.apply_updates(params, updates)
        return params, opt, ema_update(ema, params, training.ema_decay())

    pass_over = jax.jit(pass_over, donate_argnums=(0, 1, 2))
    grads, z = grads_like(state.params), product(x, W)
    carried = [state.params, state.opt, state.ema]

    def update():
        with jax.set_mesh(mesh):
            carried[:] = pass_over(*carried, grads)
        jax.block_until_ready(carried)

    wait = jax.block_until_ready
    return {"encoder product": lambda: wait(product(x, W)), "top-k": lambda: wait(top(z)), "update": update}


def measure(name: str, select: str, rounds: int, best) -> list[dict]:
    """The rows of one shape and one precision of the selection."""
    shape = common.SHAPES[name]
    cases, compile_s = {}, {}
    for aux, (coef, dead) in AUX.items():
        start = time.perf_counter()
        cases[aux] = make_case(shape, *configs(shape, select, coef), dead)
        compile_s[aux] = time.perf_counter() - start
    parts = floor(shape, select)
    seconds = common.in_turns(parts | {aux: stepper(case) for aux, case in cases.items()}, rounds)
    ms = {key: 1e3 * best(values) for key, values in seconds.items()}
    floor_ms = sum(ms[part] for part in parts)
    rows = []
    for aux, case in cases.items():
        memory = case.compiled.memory_analysis()
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
        rows.append(
            {
                "shape": name,
                "aux": aux != "off",
                "dead": AUX[aux][1],
                "select": select,
                "step_ms": ms[aux],
                "floor_ms": floor_ms,
                "ratio": ms[aux] / floor_ms,
                "to_off": ms[aux] / ms["off"],
                "tokens_per_second": shape.B / ms[aux] * 1e3,
                "peak_mb": peak / 1e6,
                "compile_s": compile_s[aux],
                "floor_parts_ms": {part: ms[part] for part in parts},
            }
        )
    return rows


def show(rows: list[dict]):
    parts = "  ".join(f"{part} {ms:.0f}" for part, ms in rows[0]["floor_parts_ms"].items())
    print(f"\n{rows[0]['shape']}, selection in {rows[0]['select']}: floor {rows[0]['floor_ms']:.0f} ms = {parts}")
    print(f"{'AuxK':<22}{'step ms':>9}{'ratio':>8}{'to off':>8}{'tokens/s':>10}{'peak MB':>9}{'compile s':>11}")
    for row in rows:
        aux = f"on, {row['dead']:.0%} dead" if row["aux"] else "off"
        print(
            f"{aux:<22}{row['step_ms']:>9.0f}{row['ratio']:>8.2f}{row['to_off']:>8.2f}{row['tokens_per_second']:>10.0f}"
            f"{row['peak_mb']:>9.0f}{row['compile_s']:>11.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=common.SHAPES, default=["small", "big"])
    parser.add_argument("--select", nargs="+", choices=["float32", "tf32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each variant, taking turns")
    parser.add_argument("--median", action="store_true", help="medians, not the least of the calls")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/step-*.json")
    args = parser.parse_args()
    device = jax.devices()[0]
    for shape in args.shape:
        kept = []
        for select in args.select:
            rows = measure(shape, select, args.rounds, median if args.median else min)
            kept += rows
            print("\n".join(map(json.dumps, rows))) if args.json else show(rows)
        if args.keep:
            kind = device.device_kind.replace(" ", "-").lower()
            facts = common.manifest() | {"jax": jax.__version__, "device": device.device_kind}
            common.keep(f"step-{shape}-{kind}", facts, kept)


if __name__ == "__main__":
    main()
