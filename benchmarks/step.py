"""One training step beside its floor, measured in turns in one process.

    python -m benchmarks.step [--shape small big] [--rounds 10] [--json] [--keep]

The floor is the encoder's product at the precision of the selection, lax.top_k of its result, and one donated pass of
projection, Adam, renormalisation and EMA over the same parameters: what a TopK step cannot do without.
"""

import time
from collections.abc import Iterator
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import common
from benchmarks.jaxsae_step import configuration, make_case, make_state
from jaxsae.distributed.mesh import make_mesh
from jaxsae.precision import times_rows
from jaxsae.sae.config import SAEConfig
from jaxsae.scaling import flops
from jaxsae.training.config import TrainingConfig
from jaxsae.training.optimizer import ema_update, make_optimizer
from jaxsae.training.program import make_program

# AuxK off; on, with a tenth of the latents dead; on, with none dead.
AUX = {"off": (0.0, 0.0), "on": (1 / 32, common.DEAD), "idle": (1 / 32, 0.0)}


def configs(shape: common.Shape, select: str, auxk_coef: float) -> tuple[SAEConfig, TrainingConfig]:
    sae = SAEConfig(n=shape.n, k=shape.k, normalise="none", select_precision=select)
    return sae, configuration(shape.B, auxk_coef=auxk_coef, k_aux=shape.k_aux)


def floor(shape: common.Shape, select: str) -> dict:
    """The parts of the floor by name, each a function that waits for its result."""
    mesh = make_mesh(1, 1)
    sae, training = configs(shape, select, 0.0)
    state = make_state(make_program(sae, training, shape.d), sae, training, mesh)
    W, x = jnp.asarray(np.asarray(state.params.W_enc)), jax.random.normal(jax.random.key(1), (shape.B, shape.d))
    optimizer = make_optimizer(sae, training)

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


def measure(name: str, args) -> Iterator[list[dict]]:
    """The rows of one shape, for each precision of the selection."""
    for select in args.select:
        yield measure_selection(name, select, args.rounds, median if args.median else min)


def measure_selection(name: str, select: str, rounds: int, best) -> list[dict]:
    shape = common.SHAPES[name]
    cases, compile_s = {}, {}
    for aux, (coef, dead) in AUX.items():
        start = time.perf_counter()
        cases[aux] = make_case(*configs(shape, select, coef), shape.d, dead)
        compile_s[aux] = time.perf_counter() - start
    parts = floor(shape, select)
    seconds = common.in_turns(parts | {aux: case.stepper() for aux, case in cases.items()}, rounds)
    ms = {key: 1e3 * best(values) for key, values in seconds.items()}
    floor_ms = sum(ms[part] for part in parts)
    rows = []
    for aux, case in cases.items():
        (coef, dead), memory = AUX[aux], case.compiled.memory_analysis()
        peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
        parts_of_token = flops.training(configs(shape, select, coef)[0], shape.d, shape.B, dead=dead)
        rows.append(
            {
                "shape": name,
                "aux": aux != "off",
                "dead": dead,
                "select": select,
                "step_ms": ms[aux],
                "floor_ms": floor_ms,
                "ratio": ms[aux] / floor_ms,
                "to_off": ms[aux] / ms["off"],
                "tokens_per_second": shape.B / ms[aux] * 1e3,
                "flops": shape.B * sum(parts_of_token.values()),
                "peak_mb": peak / 1e6,
                "compile_s": compile_s[aux],
                "floor_parts_ms": {part: ms[part] for part in parts},
            }
        )
    return rows


def show(rows: list[dict]):
    parts = "  ".join(f"{part} {ms:.0f}" for part, ms in rows[0]["floor_parts_ms"].items())
    print(f"\n{rows[0]['shape']}, selection in {rows[0]['select']}: floor {rows[0]['floor_ms']:.0f} ms = {parts}")
    columns = {
        "AuxK": lambda row: f"on, {row['dead']:.0%} dead" if row["aux"] else "off",
        "step ms": lambda row: f"{row['step_ms']:.0f}",
        "ratio": lambda row: f"{row['ratio']:.2f}",
        "to off": lambda row: f"{row['to_off']:.2f}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:.0f}",
        "GFLOP/s": lambda row: f"{row['flops'] / row['step_ms'] / 1e6:.0f}",
        "peak MB": lambda row: f"{row['peak_mb']:.0f}",
        "compile s": lambda row: f"{row['compile_s']:.1f}",
    }
    common.print_table(columns, rows)


def main():
    parser = common.arguments(__doc__, common.SHAPES, ["small", "big"], rounds=10)
    parser.add_argument("--select", nargs="+", choices=["float32", "tf32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--median", action="store_true", help="medians, not the least of the calls")
    common.run("step", parser.parse_args(), measure, show)


if __name__ == "__main__":
    main()
