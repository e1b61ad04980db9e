"""The environments that the peers run in, made once: they pin other versions of what jaxsae and each other need."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
DELPHI_READER = (
    *("transformers==4.57.6", "eai-sparsify==1.3.3", "sentence-transformers", "faiss-cpu", "safetensors"),
    *("simple-parsing", "jaxtyping", "orjson", "blobfile", "asyncer"),
)


@dataclass(frozen=True)
class Environment:
    package: str
    """The library, at its version."""
    remove: tuple[str, ...] = ()
    """What it brings along and must not stay."""
    instead: tuple[str, ...] = ()
    """What is installed in place of its dependencies; default: those."""


ENVIRONMENTS = {
    "sparsify": Environment("eai-sparsify==1.3.3"),
    "saelens": Environment("sae-lens==6.54.12"),
    # A torchvision that was built for another build of PyTorch breaks its import, and the training step needs none.
    "transformers": Environment("transformers==5.24.0"),
    "dictionary-learning": Environment("dictionary-learning==0.1.0", remove=("torchvision",)),
    # It is not measured: tests/interop/with_their_own_code.py has it read what jaxsae writes.
    "circuit-tracer": Environment("circuit-tracer==0.5.0"),
    # Likewise. Its dependencies are for running language models, and its reader needs these alone; of transformers 5 it
    # gets one string for a whole window of tokens.
    "delphi": Environment("eai-delphi==0.1.3", instead=DELPHI_READER),
}


def default_cache() -> Path:
    """The folder of the environments: under $JAXSAE_CACHE, or in the user's cache."""
    return Path(os.environ.get("JAXSAE_CACHE", Path.home() / ".cache" / "jaxsae")) / "benchmarks"


def commands(environment: Environment, torch_index: str | None) -> list[list[str]]:
    """The pip commands that fill an environment, in order."""
    index = ["--index-url", torch_index] if torch_index else []
    # PyTorch first and alone, so that its build is the one asked for; named again, so that nothing replaces it.
    made = [["install", TORCH, *index], ["install", TORCH, *(environment.instead or [environment.package])]]
    if environment.instead:
        made.append(["install", "--no-deps", environment.package])
    return made + ([["uninstall", "--yes", *environment.remove]] if environment.remove else [])


def python(name: str, cache: Path, torch_index: str | None = None) -> Path:
    """The interpreter of a peer's environment, which is made first where it is not there as it would be made now.

    Raises subprocess.CalledProcessError where something cannot be installed.
    """
    folder, pip = cache.expanduser() / name, commands(ENVIRONMENTS[name], torch_index)
    folder.parent.mkdir(parents=True, exist_ok=True)
    interpreter, stamp = folder / "bin" / "python", folder / "made.json"
    made = json.dumps({"python": sys.version.split()[0], "pip": pip})
    with open(folder.with_name(f".{name}.lock"), "w") as lock:
        # Another run may be making it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != made:
            _make(name, folder, interpreter, pip)
            # Last: a folder without it was left behind by a run that stopped half-way.
            stamp.write_text(made)
    return interpreter


def _make(name: str, folder: Path, interpreter: Path, pip: list[list[str]]):
    say = lambda message: print(f"{name}: {message}", file=sys.stderr, flush=True)
    run = lambda *command: subprocess.run(command, check=True, stdout=sys.stderr)
    start = time.perf_counter()
    say(f"making its environment in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder)
    for command in pip:
        say(f"pip {' '.join(command)}")
        run(interpreter, "-m", "pip", *command, *([] if sys.stderr.isatty() else ["--quiet"]))
    say(f"made in {time.perf_counter() - start:.0f} s")
