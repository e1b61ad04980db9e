"""`jaxsae train` as it is typed first, and where its time goes; against another checkout, process by process in turns.

    python benchmarks/first_command.py [--against PATH] [--rounds 1] [--warm] [-- --tokens 200000 ...]

Prints seconds until training begins, of training (its first step compiles), of the evaluation, and of the whole, with
the CPU's seconds; of several rounds the least. Every run has an empty cache of its own (it tokenises and compiles), or
with --warm the one that the run before it in its checkout left. Flags after `--` are those of `jaxsae train`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[1]
PARTS = ("start", "training", "evaluation", "whole", "cpu")


def run(checkout: Path, cache: str, flags: list[str]) -> dict[str, float]:
    """Seconds of each part of one run of a checkout's `jaxsae train`."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(checkout), "JAXSAE_CACHE": cache}
        command = [sys.executable, "-m", "jaxsae.cli", "train", "--run", f"{folder}/run", *flags]
        began, seen, text = time.monotonic(), {}, ""
        bars = {"training": ("training:", "training step:"), "evaluating": ("evaluating:",)}
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        while part := os.read(process.stderr.fileno(), 4096):
            text += part.decode(errors="replace")
            for name, titles in bars.items():
                if name not in seen and any(title in text for title in titles):
                    seen[name] = time.monotonic() - began
        _, status, usage = os.wait4(process.pid, 0)
        whole = time.monotonic() - began
        if status:
            raise SystemExit(f"{checkout}: {text}")
        summary = json.loads(Path(f"{folder}/run/summary.json").read_text())
        tokens = json.loads(Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()[-1])["tokens"]
    return {
        "start": seen["training"],
        "training": tokens / summary["tokens_per_second"],
        "evaluation": whole - seen["evaluating"],
        "whole": whole,
        "cpu": usage.ru_utime + usage.ru_stime,
        "nmse": summary["nmse"],
        "ce_recovered": summary["ce_recovered"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("flags", nargs="*", help="of jaxsae train, after --")
    args = parser.parse_args()
    checkouts = {"this": HERE} | ({"against": args.against.resolve()} if args.against else {})
    least = {name: {} for name in checkouts}
    with tempfile.TemporaryDirectory() as caches:
        for number in range(args.rounds):
            for name, checkout in checkouts.items():
                cache = f"{caches}/{name}" if args.warm else f"{caches}/{name}-{number}"
                for part, seconds in run(checkout, cache, args.flags).items():
                    least[name][part] = min(seconds, least[name].get(part, seconds))
    print(f"{'':12}" + "".join(f"{name:>10}" for name in checkouts) + ("     ratio" if args.against else ""))
    for part in least["this"]:
        values = [least[name][part] for name in checkouts]
        ratio = f"{values[0] / values[1]:10.2f}" if args.against and part in PARTS else ""
        print(f"{part:12}" + "".join(f"{value:10.3f}" for value in values) + ratio)


if __name__ == "__main__":
    main()
