"""One end-to-end training step beside its floor, measured in turns in one process.

    python benchmarks/e2e.py [--shape small gpt2] [--rounds 8] [--keep]

The floor is what such a step cannot do without, each part compiled and timed alone: the language model's prefix, its
suffix and unembedding forward twice, once backward to the autoencoder's output, and the autoencoder's own local step.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp

from benchmarks import common
from benchmarks.jaxsae_step import Case, make_case, make_state
from benchmarks.step import stepper
from jaxsae import lm as lms
from jaxsae.lm.gpt2 import GPT2, GPT2Config
from jaxsae.lm.model import final, prefix, unembed
from jaxsae.mesh import make_mesh, replicate
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.objectives import make_objective
from jaxsae.training.optimizer import make_optimizer
from jaxsae.training.step import hyper, make_step


@dataclass(frozen=True)
class Shape:
    """An end-to-end step: contexts of T tokens through a language model, n latents of which k are kept."""

    lm: GPT2Config
    hook: str
    contexts: int
    T: int
    n: int
    k: int


SHAPES = {
    # The embedded language model, as `jaxsae train --objective e2e` runs it.
    "small": Shape(GPT2Config(4096, 128, 192, 6, 4, 768), "blocks.3.hook_resid_post", 32, 64, 4096, 32),
    # GPT-2 small.
    "gpt2": Shape(GPT2Config(50257, 1024, 768, 12, 12, 3072), "blocks.8.hook_resid_post", 8, 64, 24576, 32),
    # Its published runs; for big machines and GPUs.
    "paper": Shape(GPT2Config(50257, 1024, 768, 12, 12, 3072), "blocks.6.hook_resid_pre", 16, 1024, 46080, 32),
}


def floor(shape: Shape, lm: lms.LM, tokens, sae: SAEConfig, training: TrainingConfig) -> dict:
    """The parts of the floor by name, each a function that waits for its result."""
    wait, V = jax.block_until_ready, shape.lm.vocab_size
    # Logits, and what is summed of them, some tokens at a time, as any program that must not hold all of them does.
    chunk = training.kl_chunk

    @jax.jit
    def run_prefix(lm, tokens):
        return prefix(lm, tokens, shape.hook)

    @jax.jit
    def forward(lm, x):
        rows = final(lm, x, shape.hook).reshape(-1, chunk, x.shape[-1])
        return jax.lax.map(lambda rows: jax.nn.logsumexp(unembed(lm, rows), -1), rows)

    x = run_prefix(lm, tokens)
    # The backward pass alone: through the blocks from what the unembedding reads, and one product of the unembedding.
    weight = jax.random.normal(jax.random.key(3), (chunk, V))

    def backward(lm, x, weight):
        h, back = jax.vjp(lambda x: final(lm, x, shape.hook), x)
        rows = h.reshape(-1, chunk, h.shape[-1])
        slope = lambda rows: jax.linear_transpose(lambda r: unembed(lm, r), rows)(weight)[0]
        return back(jax.lax.map(slope, rows).reshape(h.shape))[0]

    both = jax.jit(backward)
    blocks = jax.jit(lambda lm, x: final(lm, x, shape.hook))

    local = stepper(local_case(shape, sae, training))
    return {
        "prefix": lambda: wait(run_prefix(lm, tokens)),
        "suffix forward": lambda: wait(forward(lm, x)),
        # Holds one forward pass of the blocks, which is taken off.
        "suffix forward and backward": lambda: wait(both(lm, x, weight)),
        "blocks forward": lambda: wait(blocks(lm, x)),
        "local step": local,
    }


def floor_ms(ms: dict) -> float:
    backward = ms["suffix forward and backward"] - ms["blocks forward"]
    return ms["prefix"] + 2 * ms["suffix forward"] + backward + ms["local step"]


def local_case(shape: Shape, sae: SAEConfig, training: TrainingConfig) -> Case:
    size = common.Shape(shape.lm.n_embd, shape.n, shape.k, shape.contexts * shape.T, 8)
    return make_case(size, sae, replace(training, objective="local", auxk_coef=0.0), 0.0)


def case(shape: Shape, lm: lms.LM, tokens, sae: SAEConfig, training: TrainingConfig) -> Case:
    mesh = make_mesh(1, 1)
    size = common.Shape(shape.lm.n_embd, shape.n, shape.k, shape.contexts * shape.T, 8)
    state = make_state(mesh, size, sae, training, 0.0)
    objective = make_objective(sae, training, shape.lm, shape.hook)
    step = make_step(sae, training, make_optimizer(sae.decoder, eps=training.adam_eps), 8, objective)
    knobs = hyper(sae, training)
    lm, tokens = replicate((lm, tokens), mesh)
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, donate_argnums=0).lower(state, tokens, knobs, lm).compile()
    return Case(lambda state, x, knobs: compiled(state, x, knobs, lm), state, tokens, knobs, compiled, mesh)


def measure(name: str, rounds: int) -> list[dict]:
    shape = SHAPES[name]
    tokens = jax.random.randint(jax.random.key(0), (shape.contexts, shape.T), 0, shape.lm.vocab_size)
    init = jax.jit(GPT2(shape.lm).init)
    lm = lms.LM(init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"], shape.lm)
    size = shape.contexts * shape.T
    sae = SAEConfig(shape.n, shape.k)
    training = TrainingConfig("e2e", tokens=10**9, batch_size=size, dead_after=10**8, kl_chunk=min(512, size // 4))
    variants = {
        "e2e, in chunks": training,
        "e2e, whole logits": replace(training, kl_chunk=size),
        "e2e_downstream, in chunks": replace(training, objective="e2e_downstream"),
    }
    cases, compile_s = {}, {}
    for title, variant in variants.items():
        start = time.perf_counter()
        cases[title] = case(shape, lm, tokens, sae, variant)
        compile_s[title] = time.perf_counter() - start
    parts = floor(shape, lm, tokens, sae, training)
    seconds = common.in_turns(parts | {title: stepper(c) for title, c in cases.items()}, rounds)
    ms = {title: 1e3 * min(values) for title, values in seconds.items()}
    rows = []
    for title, c in cases.items():
        memory = c.compiled.memory_analysis()
        rows.append(
            {
                "shape": name,
                "sizes": f"{shape.contexts} contexts of {shape.T} tokens, {shape.hook} of {shape.lm.n_layer} blocks, "
                f"d {shape.lm.n_embd}, V {shape.lm.vocab_size}, n {shape.n}, k {shape.k}",
                "variant": title,
                "step_ms": ms[title],
                "floor_ms": floor_ms(ms),
                "ratio": ms[title] / floor_ms(ms),
                "tokens_per_second": size / ms[title] * 1e3,
                "temporaries_mb": memory.temp_size_in_bytes / 1e6,
                "peak_mb": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6,
                "compile_s": compile_s[title],
                "floor_parts_ms": {part: ms[part] for part in parts},
            }
        )
    return rows


def show(rows: list[dict]):
    parts = ", ".join(f"{part} {ms:.0f}" for part, ms in rows[0]["floor_parts_ms"].items())
    print(f"\n{rows[0]['shape']}: floor {rows[0]['floor_ms']:.0f} ms ({parts})")
    print(f"{'step':<28}{'ms':>8}{'ratio':>8}{'tokens/s':>10}{'temporaries MB':>16}{'peak MB':>10}{'compile s':>11}")
    for row in rows:
        print(
            f"{row['variant']:<28}{row['step_ms']:>8.0f}{row['ratio']:>8.2f}{row['tokens_per_second']:>10.0f}"
            f"{row['temporaries_mb']:>16.0f}{row['peak_mb']:>10.0f}{row['compile_s']:>11.1f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small", "gpt2"])
    parser.add_argument("--rounds", type=int, default=8, help="timed calls of each variant, taking turns")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/e2e-*.json")
    args = parser.parse_args()
    device = jax.devices()[0]
    for shape in args.shape:
        rows = measure(shape, args.rounds)
        print("\n".join(map(json.dumps, rows))) if args.json else show(rows)
        if args.keep:
            kind = device.device_kind.replace(" ", "-").lower()
            facts = common.manifest() | {"jax": jax.__version__, "device": device.device_kind}
            common.keep(f"e2e-{shape}-{kind}", facts, rows)


if __name__ == "__main__":
    main()
