"""Runs that share a pass or a program beside runs that do not, by their wall and CPU seconds.

    python -m benchmarks.sweep [--tokens 262144] [--seeds 8] [--only stack hooks files] [--keep]

    stack   autoencoders that differ in their seed, in one process, beside as many runs one after another, and beside
            as many processes, one on each core at a time
    hooks   autoencoders at three hook points from one pass, beside three runs
    files   a run on harvested activations beside one that runs the language model's prefix; harvesting is a row of its
            own

Every run is the whole command: it starts Python, trains, evaluates and saves. The text is tokenised and all programs
are compiled before, as they are for all runs of a sweep but the first. Wall seconds are of a machine that does nothing
else; where it does, compare CPU seconds. `training` has the seconds of the training loops alone.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import common

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post")

# What `jaxsae sweep` does with runs that it groups: {name: configuration}, from the flags of each.
STACK = """
import json, sys
from jaxsae.cli import parse
from jaxsae.run.together import train
outcomes = train({name: parse(["train", *flags])[0].settings for name, flags in json.loads(sys.argv[1]).items()})
for outcome in outcomes.values():
    if isinstance(outcome, Exception):
        raise outcome
"""


class Bench:
    """Commands in processes of their own, and what they took."""

    def __init__(self, args, folder: Path):
        self.args, self.folder = args, folder
        cache = args.cache or str(folder / "cache")
        flags = f"--lm {args.lm} --sae.n {args.n} --sae.k {args.k} --batch-size {args.batch_size} --cache {cache} "
        self.flags = [*shlex.split(flags), *args.flags]
        self.harvest = [*shlex.split(f"--lm {args.lm} --cache {cache}")]
        self.runs: list[Path] = []

    def train(self, name: str, *flags: str) -> list[str]:
        """The flags of one run in a new folder."""
        self.runs.append(self.folder / f"{len(self.runs)}-{name}")
        return ["--run", str(self.runs[-1]), "--tokens", str(self.args.tokens), *self.flags, *flags]

    def measure(self, group: str, name: str, run: Callable[[], None]) -> dict:
        self.runs, before, start = [], _cpu_seconds(), time.perf_counter()
        run()
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - before
        summaries = [json.loads(path.read_text()) for run in self.runs for path in run.rglob("summary.json")]
        # Members of one process train at the same time.
        loops = [summary["tokens"] / summary["tokens_per_second"] for summary in summaries]
        training = max(loops) if len(self.runs) == 1 or name.startswith("one ") else sum(loops)
        return {"group": group, "variant": name, "seconds": seconds, "cpu_seconds": cpu, "training_seconds": training}


def _cpu_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def call(*command: str, core: int | None = None):
    """Run a command to its end, on one core if that is given."""
    pin = None if core is None else (lambda: os.sched_setaffinity(0, {core}))
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=pin)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def jaxsae(*args: str, core: int | None = None):
    call(sys.executable, "-m", "jaxsae.cli", *args, core=core)


def measure_stack(bench: Bench) -> list[dict]:
    seeds = range(bench.args.seeds)
    run_of = lambda seed, group: bench.train(f"{group}{seed}", "--seed", str(seed), "--data-seed", "0")

    def singles():
        for seed in seeds:
            jaxsae("train", *run_of(seed, "single"))

    def processes():
        cores = sorted(os.sched_getaffinity(0))
        commands = [run_of(seed, "process") for seed in seeds]
        free = [*cores]

        def one(flags):
            core = free.pop()
            jaxsae("train", *flags, core=core)
            free.append(core)

        with ThreadPoolExecutor(len(cores)) as pool:
            list(pool.map(one, commands))

    def stack():
        call(sys.executable, "-c", STACK, json.dumps({str(seed): run_of(seed, "stack") for seed in seeds}))

    count, cores = len(seeds), len(os.sched_getaffinity(0))
    return [
        bench.measure("stack", f"{count} runs, one after another", singles),
        bench.measure("stack", f"{count} processes, {cores} at a time", processes),
        bench.measure("stack", f"one stack of {count}", stack),
    ]


def measure_hooks(bench: Bench) -> list[dict]:
    hooks = bench.args.hooks

    def singles():
        for hook in hooks:
            jaxsae("train", *bench.train(hook, "--hook", hook))

    return [
        bench.measure("hooks", f"{len(hooks)} runs, one after another", singles),
        bench.measure(
            "hooks", f"one pass for {len(hooks)}", lambda: jaxsae("train", *bench.train("pass", "--hook", *hooks))
        ),
    ]


def measure_files(bench: Bench) -> list[dict]:
    out, args = bench.folder / "activations", bench.args
    harvest = ["harvest", "--out", str(out), "--tokens", str(args.tokens), "--dtype", "bfloat16", *bench.harvest]
    start, before = time.perf_counter(), _cpu_seconds()
    jaxsae(*harvest)
    row = {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - before, "training_seconds": None}
    prefix = bench.measure("files", "a run of the prefix", lambda: jaxsae("train", *bench.train("prefix")))
    flags = ["--activations", str(out)]
    files = bench.measure("files", "a run on files", lambda: jaxsae("train", *bench.train("files", *flags)))
    return [prefix, files, {"group": "files", "variant": "harvesting, once", **row}]


GROUPS = {"stack": measure_stack, "hooks": measure_hooks, "files": measure_files}


def measure(args) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        # So that all is tokenised and compiled: one step is enough.
        jaxsae("train", *bench.train("first"), "--seed", "1")
        for group in args.only:
            table = GROUPS[group](bench)
            for row in table:
                for name in ("seconds", "cpu_seconds", "training_seconds"):
                    row[f"{name}_ratio"] = None if row[name] is None else row[name] / table[0][name]
            rows += table
            print("\n".join(map(json.dumps, table)), flush=True) if args.json else show(table)
    return rows


def show(rows: list[dict]):
    number = lambda name, form: lambda row: "" if row[name] is None else format(row[name], form)
    columns = {"": lambda row: row["variant"]}
    for title, name in (("seconds", "seconds"), ("CPU seconds", "cpu_seconds"), ("training", "training_seconds")):
        columns |= {title: number(name, ".0f"), "ratio" + " " * len(columns): number(f"{name}_ratio", ".2f")}
    print()
    common.print_table(columns, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=[*GROUPS])
    parser.add_argument("--tokens", type=int, default=262_144, help="of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=8, help="members of the stack (%(default)s)")
    parser.add_argument("--lm", default="embedded")
    parser.add_argument("--hooks", nargs="+", default=HOOKS)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--cache", default=None, help="folder of tokenised text; default: a new one")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="last: further flags of jaxsae train")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/*.json")
    args = parser.parse_args()
    rows = measure(args)
    if args.keep:
        import jax

        device = jax.devices()[0].device_kind
        facts = common.manifest() | {"jax": jax.__version__, "device": device, "tokens": args.tokens}
        common.keep(f"sweep-{args.lm}-{device.replace(' ', '-').lower()}", facts, rows)


if __name__ == "__main__":
    main()
