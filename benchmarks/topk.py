"""Ways to find the k largest of every row of [B, n], measured in turns in one process: which one should a GPU use?

    python -m benchmarks.topk [--shape big wide] [--rounds 10] [--json] [--keep]

plain       lax.top_k: the lower index first where values are equal
unstable    lax.top_k(is_stable=False), where this version of JAX has it: a faster kernel on GPUs
groups g    exact in two stages: the k largest of each of g groups of latents, then those of the candidates
threshold   the k-th largest found bit by bit by counting, as AuxK does; it gives the threshold only
"""

import inspect
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import common
from jaxsae.sae.kth_largest import kth_largest


def two_stages(z, k: int, groups: int):
    """lax.top_k(z, k) for z [B, n], by way of the k largest of each of `groups` equal parts of a row."""
    part = z.shape[1] // groups
    v, i = lax.top_k(z.reshape(len(z), groups, part), min(k, part))
    i = i + part * jnp.arange(groups, dtype=i.dtype)[:, None]
    v, at = lax.top_k(v.reshape(len(z), -1), k)
    return v, jnp.take_along_axis(i.reshape(len(z), -1), at, 1)


def threshold(z, k: int):
    """The k-th largest of each row of z [B, n], or 0 where that is negative, [B]."""

    return kth_largest(lambda t: (z >= t[:, None]).sum(1) >= k, jnp.zeros_like(z[:, 0]))


def variants(shape: common.Shape) -> dict:
    k = shape.k
    found = {"plain": partial(lax.top_k, k=k)}
    if "is_stable" in inspect.signature(lax.top_k).parameters:
        found["unstable"] = partial(lax.top_k, k=k, is_stable=False)
    found |= {f"groups {g}": partial(two_stages, k=k, groups=g) for g in (8, 32, 128) if shape.n % g == 0}
    return found | {"threshold": partial(threshold, k=k)}


def measure(name: str, args) -> Iterator[list[dict]]:
    """A row for each way at a shape; each is compared with NumPy first."""
    shape = common.SHAPES[name]
    z = jax.random.normal(jax.random.key(0), (shape.B, shape.n))
    want = -np.sort(-np.asarray(z[:8]), 1)[:, : shape.k]
    calls = {}
    for way, run in variants(shape).items():
        run = jax.jit(run)
        out = run(z)
        least = out if way == "threshold" else -np.sort(-np.asarray(out[0]), 1)
        np.testing.assert_array_equal(least[:8], want[:, -1] if way == "threshold" else want)
        calls[way] = lambda run=run: jax.block_until_ready(run(z))
    seconds = common.in_turns(calls, args.rounds)
    plain = min(seconds["plain"])
    yield [
        {"shape": name, "way": way, "ms": 1e3 * min(s), "to_plain": min(s) / plain, "rounds": args.rounds}
        for way, s in seconds.items()
    ]


def show(rows: list[dict]):
    print(f"\n{rows[0]['shape']}")
    columns = {
        "way": lambda row: row["way"],
        "ms": lambda row: f"{row['ms']:.2f}",
        "to plain": lambda row: f"{row['to_plain']:.2f}",
    }
    common.print_table(columns, rows)


def main():
    args = common.arguments(__doc__, common.SHAPES, ["small", "big"], rounds=10).parse_args()
    common.run("topk", args, measure, show)


if __name__ == "__main__":
    main()
