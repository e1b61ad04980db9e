"""Training from harvested activations beside running the language model's prefix each time, in turns in one process.

    python -m benchmarks.harvest [--lm embedded] [--hook NAME] [--tokens 65536] [--steps 16] [--rounds 3] [--keep]

First it harvests --tokens of the standard library's source files in each type of number, and says how fast. Then every
variant trains --steps steps a turn, at the defaults of `jaxsae train`; its batches alone are timed as well. The files
were just written, so they come from the memory of the operating system and not from a disk.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import common
from jaxsae.config import Config, with_fields
from jaxsae.data.config import DataConfig
from jaxsae.run.harvest import harvest
from jaxsae.run.harvest_config import HarvestConfig
from jaxsae.run.inputs import open_inputs, with_origin
from jaxsae.run.train import make_batches
from jaxsae.training.program import make_program

DTYPES = ("float32", "bfloat16")


class Variant:
    """A run that trains some steps whenever it is called."""

    def __init__(self, config: Config, steps: int):
        self.steps, self.done, self.size = steps, 0, config.training.batch.batch_size
        inputs = open_inputs(
            config.lm, config.data, lambda d: jax.make_mesh((jax.device_count(), 1), ("data", "latent"))
        )
        self.mesh = inputs.mesh
        self.batches = make_batches(config, self.mesh, inputs.source("train", 0))
        self.program = make_program(config.sae, config.training, inputs.width, None, inputs.hook or "")
        self.state = self.program.first_state(self.batches, self.mesh, None)

    def _stream(self):
        start, self.done = self.done, self.done + self.steps
        return enumerate(self.batches.iterate(start, self.done), start)

    def train(self):
        with jax.set_mesh(self.mesh):
            for number, batch in self._stream():
                self.state, _ = self.program.train_step(self.state, batch, number, None)
        jax.block_until_ready(self.state)

    def read(self):
        for _, batch in self._stream():
            jax.block_until_ready(batch)


def measure(args) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        base = with_fields(Config(), lm=args.lm, hook=args.hook, cache=args.cache or f"{folder}/cache")
        base = with_fields(base, **{"sae.n": args.n, "sae.k": args.k, "tokens": 10**9})
        configs, rates, sizes = {"prefix each time": base}, {}, {}
        hooks = (args.hook,) if args.hook else ()
        data = DataConfig(cache=base.data.cache)
        for dtype in DTYPES:
            out, start = Path(folder) / dtype, time.perf_counter()
            index = harvest(HarvestConfig(str(out), args.lm, hooks, args.tokens, dtype=dtype, data=data))
            name = f"harvested, {dtype}"
            rates[name] = sum(index.tokens.values()) / (time.perf_counter() - start)
            sizes[name] = sum(path.stat().st_size for path in out.glob("*.safetensors")) / sum(index.tokens.values())
            configs[name] = with_origin(with_fields(base, activations=str(out)))
        variants = {name: Variant(config, args.steps) for name, config in configs.items()}
        calls = {(name, part): getattr(v, part) for name, v in variants.items() for part in ("train", "read")}
        seconds = {key: min(times) for key, times in common.in_turns(calls, args.rounds, warmup=1).items()}
    tokens = args.steps * base.training.batch.batch_size
    first = next(iter(variants))
    return [
        {
            "variant": name,
            "training_tokens_per_second": tokens / seconds[name, "train"],
            "training_ratio": seconds[first, "train"] / seconds[name, "train"],
            "batches_tokens_per_second": tokens / seconds[name, "read"],
            "batches_ratio": seconds[first, "read"] / seconds[name, "read"],
            "harvest_tokens_per_second": rates.get(name),
            "bytes_per_token": sizes.get(name),
        }
        for name in variants
    ]


def show(rows: list[dict]):
    number = lambda key: lambda row: "" if row[key] is None else f"{row[key]:.0f}"
    columns = {
        "activations": lambda row: row["variant"],
        "training tok/s": number("training_tokens_per_second"),
        "ratio": lambda row: f"{row['training_ratio']:.2f}",
        "batches tok/s": number("batches_tokens_per_second"),
        "ratio ": lambda row: f"{row['batches_ratio']:.2f}",
        "harvesting tok/s": number("harvest_tokens_per_second"),
        "bytes/token": number("bytes_per_token"),
    }
    common.print_table(columns, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", default="embedded")
    parser.add_argument("--hook", default=None)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--cache", default=None, help="folder of tokenised text; default: a new one")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/*.json")
    args = parser.parse_args()
    rows, device = measure(args), jax.devices()[0].device_kind
    print("\n".join(map(json.dumps, rows))) if args.json else show(rows)
    if args.keep:
        facts = common.manifest() | {"jax": jax.__version__, "device": device, "lm": args.lm}
        common.keep(f"harvest-{args.lm}-{device.replace(' ', '-').lower()}", facts, rows)


if __name__ == "__main__":
    main()
