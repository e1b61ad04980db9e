"""jaxsae's training step beside those of other libraries, on one machine in one run.

    python -m benchmarks.compare_peers [--shape small big] [--rounds 10] [--json] [--keep]

A step is forward, backward, Adam (torch.optim.Adam as it comes, as the libraries use it) and the loss read, on one
fixed batch of N(0, 1); each library's module, loss and number of latents for AuxK are its own. What their training
loops add around that is left out, and so are jaxsae's EMA and decoder norms. AuxK on: a tenth of the latents is held
dead. Every library has a process and an environment of its own (made at the first run), and they take turns while the
others wait, so noise falls on all alike.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks import common
from benchmarks.peers.environments import default_cache, python
from benchmarks.peers.protocol import Worker, WorkerFailed
from benchmarks.peers.variants import JAXSAE, Variant, variants

# Small, so that the dead stay dead and every loss falls.
LR = 1e-4
# Latents that are dead where AuxK is on: see common.DEAD.
AUX = {"off": False, "on": True}


class Timed:
    """A variant's worker and what it has measured."""

    def __init__(self, variant: Variant, interpreter: str, settings: dict):
        self.variant, self.failure = variant, None
        self.ms, self.cpu_ms, self.losses, self.last = [], [], [], {}
        self._worker = Worker(variant.module, interpreter, variant.env)
        self.facts = self._try(lambda: self._worker.build(settings)) or {}

    def warm_up(self, steps: int):
        answer = self._try(lambda: self._worker.steps(steps)) or {"losses": []}
        self.losses += answer["losses"]

    def turn(self, steps: int):
        if answer := self._try(lambda: self._worker.steps(steps)):
            self.ms += answer["ms"]
            self.cpu_ms += answer["cpu_ms"]
            self.losses += answer["losses"]
            self.last = answer

    def close(self):
        self._worker.close()

    def trouble(self) -> str | None:
        """Why there is no row of this worker: it failed, or what it did is no training."""
        if self.failure or not self.ms:
            return self.failure or "nothing was measured"
        if not all(map(math.isfinite, self.losses)):
            return "its loss is not finite"
        if self.losses[-1] >= self.losses[0]:
            return f"its loss does not fall: {self.losses[0]:.6g} at first, {self.losses[-1]:.6g} at last"
        return None

    def _try(self, ask):
        if self.failure:
            return None
        try:
            return ask()
        except WorkerFailed as failure:
            self.failure = str(failure)
            progress(f"{self.variant.peer}, {self.variant.name} failed: {failure}")
            return None


def measure(name: str, aux: str, chosen: dict[Variant, str], args) -> tuple[list[dict], dict]:
    """Rows of one shape, AuxK off or on, and the libraries' versions; `chosen` has each variant's interpreter."""
    shape = common.SHAPES[name]
    settings = asdict(shape) | {"aux": AUX[aux], "dead": common.DEAD, "lr": LR, "device": args.device}
    settings["cores"] = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        timed = []
        for variant, interpreter in chosen.items():
            progress(f"{name}, AuxK {aux}: starting {variant.peer}, {variant.name}")
            own = settings | {"precision": variant.precision, "sparse": variant.sparse}
            worker = Timed(variant, interpreter, own)
            stack.callback(worker.close)
            worker.warm_up(args.warmup)
            timed.append(worker)
        progress(f"{name}, AuxK {aux}: {args.rounds} rounds")
        turns = {worker.variant: lambda worker=worker: worker.turn(args.turn) for worker in timed}
        # The workers time their own steps; here it only counts that they take turns.
        common.in_turns(turns, args.rounds, warmup=0)
    rows, versions = [], {}
    for worker in timed:
        if trouble := worker.trouble():
            progress(f"no row of {worker.variant.peer}, {worker.variant.name}: {trouble}")
            continue
        versions |= worker.facts["versions"] | {"device": worker.facts["device"]}
        rows.append(row(name, aux, worker, shape.B))
    return compared(rows), versions


def row(name: str, aux: str, worker: Timed, tokens: int) -> dict:
    least = min(worker.ms)
    return {
        "shape": name,
        "peer": worker.variant.peer,
        "version": next(iter(worker.facts["versions"].values())),
        "variant": worker.variant.name,
        "precision": worker.variant.precision,
        "aux": AUX[aux],
        "ms_min": least,
        "ms_median": median(worker.ms),
        "cpu_ms": median(worker.cpu_ms),
        "tokens_per_second": tokens / least * 1e3,
        "peak_rss_mb": worker.last["peak_rss_mb"],
        "device_peak_mb": worker.last["device_peak_mb"],
        "steps": len(worker.ms),
        "loss_first": worker.losses[0],
        "loss_last": worker.losses[-1],
    }


def compared(rows: list[dict]) -> list[dict]:
    """Rows of one shape and AuxK with their least times divided by jaxsae's, for each of its precisions."""
    ours = {row["precision"]: row["ms_min"] for row in rows if row["peer"] == JAXSAE}
    ratio = lambda row, precision: row["ms_min"] / ours[precision] if precision in ours else None
    names = {"ratio_to_jaxsae": "float32", "ratio_to_jaxsae_bfloat16": "bfloat16"}
    return [row | {name: ratio(row, precision) for name, precision in names.items()} for row in rows]


def show(rows: list[dict]):
    shape, aux = rows[0]["shape"], "on" if rows[0]["aux"] else "off"
    print(f"\n{shape} ({common.describe(common.SHAPES[shape])}), AuxK {aux}")
    digits = lambda ms: f"{ms:.{1 if ms < 10 else 0}f}"
    columns = {
        "library": lambda row: f"{row['peer']}, {row['variant']}",
        "ms min": lambda row: digits(row["ms_min"]),
        "median": lambda row: digits(row["ms_median"]),
        "cpu ms": lambda row: digits(row["cpu_ms"]),
        "tokens/s": lambda row: f"{row['tokens_per_second']:.0f}",
        "peak MB": lambda row: f"{row['device_peak_mb'] or row['peak_rss_mb']:.0f}",
        "to float32": lambda row: f"{row['ratio_to_jaxsae']:.2f}" if row["ratio_to_jaxsae"] else "",
        "to bfloat16": lambda row: f"{row['ratio_to_jaxsae_bfloat16']:.2f}" if row["ratio_to_jaxsae_bfloat16"] else "",
    }
    common.print_table(columns, rows)
    sys.stdout.flush()


def interpreters(args) -> dict[Variant, str]:
    """The variants that are measured and their interpreters; a library that can't be installed is left out."""
    found, absent = {}, set()
    for variant in variants(args.device):
        peer = variant.peer
        if peer in absent or (args.peers and peer not in args.peers):
            continue
        try:
            found[variant] = sys.executable if peer == JAXSAE else str(python(peer, args.cache, args.torch_index))
        except subprocess.CalledProcessError as error:
            progress(f"{peer} is left out, its environment can't be made: {error}")
            absent.add(peer)
    return found


def progress(message: str):
    print(message, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = common.arguments(__doc__, common.SHAPES, ["small", "big"], rounds=10)
    peers = list(dict.fromkeys(variant.peer for variant in variants("cuda")))
    add = parser.add_argument
    add("--aux", nargs="+", choices=AUX, default=list(AUX), help="AuxK off, on, or both")
    add("--peers", nargs="+", choices=peers, help="only these libraries")
    add("--turn", type=int, help="timed steps in a turn; default: 2, or 10 on a GPU")
    add("--warmup", type=int, help="steps before; default: 2, or 20 on a GPU")
    add("--cores", type=int, nargs="+", help="numbers of the cores to run on; all that this process may use")
    add("--device", choices=["cpu", "cuda"], help="default: cuda if nvidia-smi finds a GPU")
    add("--cache", type=Path, default=default_cache(), help="folder of the libraries' environments (%(default)s)")
    add("--torch-index", help="package index to take PyTorch from: its build for CPUs, or for a version of CUDA")
    args = parser.parse_args()
    args.device = args.device or ("cuda" if has_gpu() else "cpu")
    args.turn = args.turn or (2 if args.device == "cpu" else 10)
    args.warmup = args.warmup or (2 if args.device == "cpu" else 20)
    return args


def has_gpu() -> bool:
    found = shutil.which("nvidia-smi")
    return bool(found) and subprocess.run([found, "-L"], capture_output=True).returncode == 0


def main():
    args = arguments()
    os.environ["JAX_PLATFORMS"] = args.device
    if args.cores:
        # Workers inherit it, and size their pools of threads by it.
        os.sched_setaffinity(0, args.cores)
    chosen = interpreters(args)
    for shape in args.shape:
        kept, versions = [], {}
        for aux in args.aux:
            rows, found = measure(shape, aux, chosen, args)
            kept, versions = kept + rows, versions | found
            if rows:
                print("\n".join(map(json.dumps, rows)), flush=True) if args.json else show(rows)
        if args.keep and kept:
            kind = versions["device"].replace(" ", "-").lower()
            common.keep(f"peers-{shape}-{kind}", common.manifest() | versions, kept)


if __name__ == "__main__":
    main()
