"""The folder of a run: what is in it, whether it may be written, and what it says of the run."""

import json
import os
import subprocess
import sys
import time
import uuid
from functools import partial
from importlib import metadata
from pathlib import Path

import jax

from jaxsae import __version__, atomic, processes
from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.errors import BadInput

CONFIG, MANIFEST, SUMMARY, EVAL = "config.json", "manifest.json", "summary.json", "eval.json"

# Seconds after which a file that process 0 has written must be seen by the others: network disks look only so often.
SEEN = 60


def default_folder(config: Config) -> str:
    """The run folder of a configuration that names none; that of process 0 where there are several."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return processes.on_first(lambda: f"runs/{stamp}-{config.sae.activation}-n{config.sae.n}-k{config.sae.k}")


def check(folder: Path, config: Config):
    """Raises BadInput for a folder that `config` must not write. Process 0 looks, all raise."""
    processes.on_first(partial(_check, folder, config))


def _check(folder: Path, config: Config):
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BadInput(f"--run {folder} is a file: give a folder that is not there yet")
    if not any(folder.iterdir()):
        return
    if not config.resume:
        raise BadInput(f"--run {folder} exists: give another folder, or --resume to go on with it")
    if not (folder / CONFIG).exists():
        raise BadInput(f"--run {folder} is not a run, it has no {CONFIG}: give another folder")
    if changed := configs.differences(configs.from_json(folder / CONFIG), config):
        raise BadInput(
            f"--resume with another configuration than {folder} was started with: {'; '.join(changed)}; "
            "give the same flags, or another --run"
        )


def check_data(folder: Path, fingerprint: str):
    """Raises BadInput where a run that is gone on with was started on other data or another model."""
    said = processes.exchange(fingerprint)
    for process, other in enumerate(said):
        if other != said[0]:
            raise BadInput(
                f"process {process} has other data than process 0: the fingerprint of text, tokenizer and model is "
                f"{other}, not {said[0]}; give both the same files"
            )
    was = processes.on_first(lambda: read(folder / MANIFEST).get("data_fingerprint"))
    if was not in (None, fingerprint):
        raise BadInput(
            f"--resume with other data than {folder} was started with: the fingerprint of text, tokenizer and model "
            f"was {was}, not {fingerprint}; bring back the old ones, or give another --run"
        )


def write_facts(folder: Path, config: Config, mesh: jax.sharding.Mesh, fingerprint: str):
    """config.json as the run was started, manifest.json as it runs now. Raises BadInput where hosts share no disk."""
    processes.on_first(partial(_write_facts, folder, config, mesh, fingerprint))
    if processes.several():
        _check_shared(folder)


def _write_facts(folder: Path, config: Config, mesh: jax.sharding.Mesh, fingerprint: str):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).exists():
        atomic.write_text(folder / CONFIG, configs.to_json(config))
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    device = jax.devices()[0]
    write(
        folder / MANIFEST,
        {
            "jaxsae": __version__,
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in packages},
            "platform": device.platform,
            "device_kind": device.device_kind,
            "device_count": jax.device_count(),
            "process_count": jax.process_count(),
            "mesh": dict(mesh.shape),
            "git_commit": _git_commit(),
            "seed": config.training.seed,
            "data_fingerprint": fingerprint,
        },
    )


def _check_shared(folder: Path):
    """Raises BadInput where a process does not see what process 0 writes."""

    def leave_a_mark():
        mark = folder / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        return mark.name

    mark = folder / processes.on_first(leave_a_mark)

    def look():
        until = time.monotonic() + SEEN
        # Listing a folder makes a network disk look again, asking for one file need not.
        while not folder.is_dir() or mark.name not in os.listdir(folder):
            if time.monotonic() > until:
                raise BadInput(
                    f"--run {folder} is not one folder: process {jax.process_index()} does not see what process 0 "
                    "writes there; give a folder on a disk that all hosts share"
                )
            time.sleep(0.1)

    try:
        processes.on_each(look)
    finally:
        if processes.is_first():
            mark.unlink(missing_ok=True)


def _git_commit() -> str | None:
    """The commit of the code that runs, where it runs from a checkout of its own and there is git."""
    package = Path(__file__).parent
    try:
        run = partial(subprocess.run, cwd=package, capture_output=True, text=True, check=True)
        top, commit = run(["git", "rev-parse", "--show-toplevel", "HEAD"]).stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    # Installed inside somebody else's repository, that one's commit says nothing.
    return commit if Path(top) == package.parent else None


def read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, facts: dict):
    atomic.write_text(path, json.dumps(facts, indent=1) + "\n")
