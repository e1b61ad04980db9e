"""One end-to-end training step beside its floor, measured in turns in one process.

    python -m benchmarks.e2e [--shape small gpt2] [--rounds 8] [--keep]

The floor is what such a step cannot do without, each part compiled and timed alone: the language model's prefix, its
suffix and unembedding forward twice, once backward to the autoencoder's output, and the autoencoder's own local step.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from benchmarks import common
from benchmarks.jaxsae_step import configuration, make_case
from jaxsae import lm as lms
from jaxsae.lm.gpt2 import GPT2, GPT2Config
from jaxsae.lm.model import final, prefix, unembed
from jaxsae.sae.config import SAEConfig


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


def floor(shape: Shape, lm: lms.LM, tokens, sae: SAEConfig, chunk: int) -> dict:
    """The parts of the floor by name, each a function that waits for its result.

    Logits, and what is summed of them, are made of `chunk` tokens at a time, as any program that must not hold all of
    them does.
    """
    wait, V = jax.block_until_ready, shape.lm.vocab_size

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

    local = make_case(sae, configuration(tokens.size, auxk_coef=0.0), shape.lm.d_model)
    return {
        "prefix": lambda: wait(run_prefix(lm, tokens)),
        "suffix forward": lambda: wait(forward(lm, x)),
        # Holds one forward pass of the blocks, which is taken off.
        "suffix forward and backward": lambda: wait(both(lm, x, weight)),
        "blocks forward": lambda: wait(blocks(lm, x)),
        "local step": local.stepper(),
    }


def floor_ms(ms: dict) -> float:
    backward = ms["suffix forward and backward"] - ms["blocks forward"]
    return ms["prefix"] + 2 * ms["suffix forward"] + backward + ms["local step"]


def measure(name: str, args) -> Iterator[list[dict]]:
    """The rows of one shape."""
    shape = SHAPES[name]
    tokens = jax.random.randint(jax.random.key(0), (shape.contexts, shape.T), 0, shape.lm.vocab_size)
    init = jax.jit(GPT2(shape.lm).init)
    lm = lms.LM(init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"], shape.lm)
    size = shape.contexts * shape.T
    sae, chunk = SAEConfig(shape.n, shape.k), min(512, size // 4)
    variants = {
        "e2e, in chunks": {"objective": "e2e", "e2e.kl_chunk": chunk},
        "e2e, whole logits": {"objective": "e2e", "e2e.kl_chunk": size},
        "e2e_downstream, in chunks": {"objective": "e2e_downstream", "e2e_downstream.kl_chunk": chunk},
    }
    cases, compile_s = {}, {}
    for title, variant in variants.items():
        start = time.perf_counter()
        training = configuration(size, **variant)
        cases[title] = make_case(sae, training, shape.lm.d_model, tokens=tokens, lm=lm, hook=shape.hook)
        compile_s[title] = time.perf_counter() - start
    parts = floor(shape, lm, tokens, sae, chunk)
    seconds = common.in_turns(parts | {title: case.stepper() for title, case in cases.items()}, args.rounds)
    ms = {title: 1e3 * min(values) for title, values in seconds.items()}
    rows = []
    for title, case in cases.items():
        memory = case.compiled.memory_analysis()
        rows.append(
            {
                "shape": name,
                "sizes": f"{shape.contexts} contexts of {shape.T} tokens, {shape.hook} of {shape.lm.n_layer} blocks, "
                f"d {shape.lm.d_model}, V {shape.lm.vocab_size}, n {shape.n}, k {shape.k}",
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
    yield rows


def show(rows: list[dict]):
    parts = ", ".join(f"{part} {ms:.0f}" for part, ms in rows[0]["floor_parts_ms"].items())
    print(f"\n{rows[0]['shape']}: floor {rows[0]['floor_ms']:.0f} ms ({parts})")
    columns = {
        "step": lambda row: row["variant"],
        "ms": lambda row: f"{row['step_ms']:.0f}",
        "ratio": lambda row: f"{row['ratio']:.2f}",
        "tokens/s": lambda row: f"{row['tokens_per_second']:.0f}",
        "temporaries MB": lambda row: f"{row['temporaries_mb']:.0f}",
        "peak MB": lambda row: f"{row['peak_mb']:.0f}",
        "compile s": lambda row: f"{row['compile_s']:.1f}",
    }
    common.print_table(columns, rows)


def main():
    args = common.arguments(__doc__, SHAPES, ["small", "gpt2"], rounds=8).parse_args()
    common.run("e2e", args, measure, show)


if __name__ == "__main__":
    main()
