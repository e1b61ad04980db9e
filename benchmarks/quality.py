"""What reconstruction each library ends with: equal activations in equal order, equal tokens, n, k and batch size.

    python -m benchmarks.quality [--activations DIR] [--n 2048] [--k 16] [--tokens 2000000] [--batch-size 2048]
                                 [--rates 0.333 1 3] [--peers NAME ...] [--work DIR] [--keep] [--write FILE.md]

Every library trains a TopK autoencoder with its own training code, initialisation, optimizer, schedule and auxiliary
loss, at its own default learning rate and at multiples of it (--rates); jaxsae by `jaxsae train --activations DIR` with
no rate given. All of them are evaluated by one code, on the held-out activations and in their units, from the files
that each library writes; that jaxsae reads these right is checked against what the library itself reconstructs.
Delta CE and KL are of the language model on the tokens of the held-out activations. Seconds are of training alone, on
whatever else the machine does; jaxsae's include compiling its step.

Without --activations, --tokens of the embedded model's activations on the standard library's source files are
harvested. With --work, what is done is kept: the same command goes on with it. To train one again, remove its folder
in there (jaxsae-1, sparsify-3, ...). quality_table.py explains the table, and makes it again from what --keep kept.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import common, quality_table
from benchmarks.compare_peers import has_gpu, progress
from benchmarks.peers.environments import default_cache, python
from benchmarks.peers.protocol import Worker, WorkerFailed

JAXSAE = "jaxsae"
# Most relative difference of two float32 programs that compute the same thing.
SAME = 1e-3
# Held-out rows that both reconstruct.
CHECKED = 256
# What is kept of a finished training, in its folder.
ROW = "row.json"


@dataclass(frozen=True)
class Peer:
    environment: str
    title: str
    options: dict = field(default_factory=dict)

    @property
    def module(self) -> str:
        return f"benchmarks.peers.{self.environment.replace('-', '_')}_training"


PEERS = {
    "sparsify": Peer("sparsify", "sparsify, Signum (its default)"),
    "sparsify-adam": Peer("sparsify", "sparsify, Adam", {"optimizer": "adam"}),
    "saelens": Peer("saelens", "SAELens"),
    "dictionary-learning": Peer("dictionary-learning", "dictionary_learning"),
    "dictionary-learning-normalised": Peer(
        "dictionary-learning", "dictionary_learning, normalised", {"normalise_activations": True}
    ),
}


@dataclass(frozen=True)
class Leg:
    """One training: a library, and a multiple of its default learning rate."""

    peer: str
    factor: float

    @property
    def title(self) -> str:
        return PEERS[self.peer].title if self.peer in PEERS else self.peer

    @property
    def name(self) -> str:
        return f"{self.peer}-{self.factor:g}"


def legs(args) -> list[Leg]:
    """jaxsae's default first, because the others are compared with it."""
    own = [factor for factor in args.rates if args.own_rates and factor != 1]
    of_peers = [Leg(peer, factor) for peer in args.peers for factor in args.rates]
    return [Leg(JAXSAE, 1), *(Leg(JAXSAE, factor) for factor in own), *of_peers]


def call(command: list[str]):
    """Run a command of jaxsae's to its end. Raises WorkerFailed with the last lines that it said."""
    done = subprocess.run([sys.executable, "-m", "jaxsae.cli", *command], capture_output=True, text=True)
    if done.returncode:
        said = " / ".join(done.stderr.splitlines()[-3:])
        raise WorkerFailed(f"jaxsae {command[0]} ended with status {done.returncode}: {said}")


def flags(args) -> list[str]:
    """What `jaxsae train` is given, and what the order of the activations follows from."""
    sizes = {"--sae.n": args.n, "--sae.k": args.k, "--tokens": args.tokens, "--batch-size": args.batch_size}
    sizes |= {"--seed": args.seed}
    return ["--activations", args.activations, *(str(part) for pair in sizes.items() for part in pair)]


def train_jaxsae(leg: Leg, folder: Path, args) -> dict:
    import jaxsae

    rate = []
    if leg.factor != 1:
        rate = ["--lr", str(leg.factor * jaxsae.describe(folder.parent / Leg(JAXSAE, 1).name / "run" / "sae")["lr"])]
    run = folder / "run"
    call(["train", *flags(args), "--run", str(run), "--resume", *rate])
    summary, about = json.loads((run / "summary.json").read_text()), jaxsae.describe(run / "sae")
    seconds = summary["tokens"] / summary["tokens_per_second"]
    return {"lr": about["lr"], "saved": str(run / "sae"), "seconds": seconds, "version": jaxsae.__version__}


def train_peer(leg: Leg, folder: Path, rows: Path, args, interpreter: str) -> dict:
    peer = PEERS[leg.peer]
    settings = {name: getattr(args, name) for name in ("n", "k", "batch_size", "seed", "device")} | peer.options
    settings |= {"rows": rows, "check": rows.with_name("check.npy"), "reconstructed": folder / "reconstructed.npy"}
    settings |= {"out": folder / "sae", "factor": leg.factor, "cores": len(os.sched_getaffinity(0))}
    worker = Worker(peer.module, interpreter)
    try:
        answer = worker.train({k: str(v) if isinstance(v, Path) else v for k, v in settings.items()})
    finally:
        worker.close()
    return answer | {"version": next(iter(answer.pop("versions").values()))}


def measure(leg: Leg, folder: Path, data, rows: Path, args) -> dict:
    """The row of one training; of one that failed, why."""
    from benchmarks import quality_data
    from jaxsae.errors import BadInput

    row = {"peer": leg.peer, "title": leg.title, "factor": leg.factor}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if leg.peer == JAXSAE:
            row |= train_jaxsae(leg, folder, args)
        else:
            interpreter = python(PEERS[leg.peer].environment, args.cache, args.torch_index)
            row |= train_peer(leg, folder, rows, args, str(interpreter))
            row["difference"] = quality_data.difference(
                row["saved"], rows.with_name("check.npy"), folder / "reconstructed.npy"
            )
            if not row["difference"] <= SAME:
                raise WorkerFailed(
                    f"jaxsae reads its file otherwise: reconstructions differ by {row['difference']:.2g}"
                )
        metrics = quality_data.measured(row["saved"], data)
        if not math.isfinite(metrics["fvu"]):
            raise WorkerFailed("its reconstruction is not finite")
        return row | metrics | {"trouble": None}
    except (WorkerFailed, BadInput, subprocess.CalledProcessError) as trouble:
        progress(f"{leg.name}: {trouble}")
        return row | {"trouble": str(trouble)}


def run(args, work: Path) -> list[dict]:
    """Train and evaluate everything that is not in `work` yet; says what each gave."""
    from benchmarks import quality_data

    if args.activations is None:
        args.activations = quality_data.harvest_embedded(work / "activations", args.tokens, args.batch_size)
    index = quality_data.check(args.activations, args.tokens, args.batch_size)
    rows, todo = work / "rows.npy", legs(args)
    sizes = {name: getattr(args, name) for name in ("n", "k", "tokens", "batch_size", "seed")}
    _same(work, sizes | {"activations": args.activations} | index.fingerprints)
    trains = any(leg.peer != JAXSAE and not (work / leg.name / ROW).exists() for leg in todo)
    data = quality_data.opened(args.activations, flags(args), rows if trains else None, args.eval_tokens)
    np.save(rows.with_name("check.npy"), data.held_out[:CHECKED])
    model = Path(index.lm).name
    said = f"{data.hook}, d {data.width}, n {args.n}, k {args.k}, {args.tokens:,} tokens, batches of {args.batch_size}"
    facts = {"shape": model, "sizes": said, **sizes, "eval_tokens": len(data.held_out)}
    done = []
    for leg in todo:
        kept = work / leg.name / ROW
        if kept.exists():
            done.append(json.loads(kept.read_text()))
        else:
            progress(f"{leg.title}, {leg.factor:g} times its default rate")
            done.append(facts | measure(leg, work / leg.name, data, rows, args))
            if not done[-1]["trouble"]:
                kept.write_text(json.dumps(done[-1], indent=1) + "\n")
        if done[0]["trouble"]:
            sys.exit(f"jaxsae: {done[0]['trouble']}")
        show(quality_table.compared(done)[-1])
    rows.unlink(missing_ok=True)
    return quality_table.compared(done)


def _same(work: Path, settings: dict):
    """Exit if `work` holds another comparison."""
    path = work / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        sys.exit(f"--work {work} holds another comparison: give another folder, or remove it")
    path.write_text(json.dumps(settings) + "\n")


def show(row: dict):
    """One row as a line on stderr."""
    cells = quality_table.cells(row | {"best": False, "edge": None})
    progress("  ".join(f"{head} {cell}".strip() for head, cell in zip(quality_table.HEAD, cells) if cell))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--activations", help="DIR or DIR#HOOK that `jaxsae harvest` wrote; default: the embedded model's, harvested")
    add("--n", type=int, default=2048, help="latents (%(default)s)")
    add("--k", type=int, default=16, help="active latents of a token (%(default)s)")
    add("--tokens", type=int, default=2_000_000, help="to train on (%(default)s)")
    add("--batch-size", type=int, default=2048, help="tokens of a step (%(default)s)")
    add("--seed", type=int, default=0, help="of the weights, and of the order of the activations (%(default)s)")
    add("--eval-tokens", type=int, default=65_536, help="held-out tokens to evaluate on, at most (%(default)s)")
    add("--rates", type=float, nargs="+", default=[1 / 3, 1, 3], help="multiples of each library's default rate")
    add("--own-rates", action="store_true", help="jaxsae too at these multiples of its default")
    add("--peers", nargs="*", choices=PEERS, default=[*PEERS], help="only these libraries (%(choices)s)")
    add("--work", type=Path, help="folder to work in and go on with; default: a temporary one")
    add("--cores", type=int, nargs="+", help="numbers of the cores to run on; all that this process may use")
    add("--device", choices=["cpu", "cuda"], help="default: cuda if nvidia-smi finds a GPU")
    add("--cache", type=Path, default=default_cache(), help="folder of the libraries' environments (%(default)s)")
    add("--torch-index", help="package index to take PyTorch from")
    add("--json", action="store_true", help="one object a line")
    add("--keep", action="store_true", help="write benchmarks/results/quality-*.json")
    add("--write", type=Path, help="Markdown file for all kept tables: quality_table.py says where in it")
    args = parser.parse_args(argv)
    for name in ("n", "k", "tokens", "batch_size", "eval_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}: give at least 1")
    if args.k > args.n:
        parser.error(f"--k is {args.k}, and there are {args.n} latents: give at most that")
    if not all(0 < rate < math.inf for rate in args.rates):
        parser.error(f"--rates are multiples of the default, and {min(args.rates)} is none: give positive numbers")
    args.device = args.device or ("cuda" if has_gpu() else "cpu")
    return args


def main(argv: list[str] | None = None):
    args = arguments(argv)
    os.environ["JAX_PLATFORMS"] = args.device
    # JAX must leave the others some of the device's memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if args.cores:
        os.sched_setaffinity(0, args.cores)
    from jaxsae.errors import BadInput

    with tempfile.TemporaryDirectory() as temporary:
        # The workers run in another folder.
        work = (args.work or Path(temporary)).resolve()
        try:
            if args.write:
                quality_table.with_tables(args.write, "")
            work.mkdir(parents=True, exist_ok=True)
            rows = run(args, work)
        except (BadInput, OSError, ValueError) as error:
            sys.exit(f"quality: {error}")
    print("\n".join(map(json.dumps, rows)) if args.json else f"\n{quality_table.quality_table(rows)}")
    if args.keep or args.write:
        keep(rows, args)


def keep(rows: list[dict], args):
    """Write the rows under results/, and with --write all such tables into a file."""
    import jax

    device = jax.devices()[0].device_kind.replace(" ", "-").lower()
    versions = {row["peer"]: row.get("version") for row in rows}
    name = f"quality-{rows[0]['shape']}-n{args.n}-k{args.k}-{args.tokens}-{device}"
    # Where an autoencoder lies says nothing on another machine.
    rows = [{key: value for key, value in row.items() if key != "saved"} for row in rows]
    common.keep(name, common.manifest() | {"device": device, "jax": jax.__version__} | versions, rows)
    if args.write:
        quality_table.write(args.write, common.RESULTS)


if __name__ == "__main__":
    # So that a worker does not outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
