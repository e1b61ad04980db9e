"""The folder of a run: what is in it, whether it may be written, and what it says of the run."""

import itertools
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import metadata
from pathlib import Path

import jax

from jaxsae import __version__
from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.io import atomic
from jaxsae.run import identity, lock

CONFIG, MANIFEST, SUMMARY, EVAL = "config.json", "manifest.json", "summary.json", "eval.json"

# Time after which a file that process 0 has written must be seen by the others: network disks look only so often.
VISIBILITY_TIMEOUT_S = 60


def default_folder(config: Config) -> str:
    """A new run folder for a configuration that names none: that of process 0, for all processes."""
    name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.sae.activation}-n{config.sae.n}-k{config.sae.k}"

    def make() -> str:
        for number in itertools.count(1):
            folder = Path(name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue  # another run of the same second
            return str(folder)

    return processes.on_primary(make)


@contextmanager
def written_by_this_run(folder: Path, config: Config) -> Iterator[None]:
    """Nobody else trains in `folder` meanwhile; nothing is left of it if nothing was written.

    Raises BadInput, in all processes, for a folder that `config` must not write, or that a living process writes.
    """
    with ExitStack() as stack:
        processes.on_primary(partial(_hold, stack, folder, config))
        yield


def _hold(stack: ExitStack, folder: Path, config: Config):
    """Let `stack` hold the folder."""
    lock.check_free(folder)
    check(folder, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(_remove_if_empty, folder)
        stack.enter_context(lock.hold(folder))
    except OSError as error:
        raise BadInput(f"--run {folder} cannot be written: {error}") from error
    check(folder, config)


def _remove_if_empty(folder: Path):
    with suppress(OSError):
        folder.rmdir()


def check(folder: Path, config: Config):
    """Raises BadInput for a folder that `config` must not write; in a run of several processes, for process 0."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BadInput(f"--run {folder} is a file: give a folder that is not there yet")
    if all(path.name.startswith(lock.FILE) for path in folder.iterdir()):
        return
    if not config.resume:
        raise BadInput(f"--run {folder} exists: give another folder, or --resume it")
    if not (folder / CONFIG).exists():
        raise BadInput(f"--run {folder} is not a run, it has no {CONFIG}: give another folder")
    _check_resumed(folder, configs.from_json(folder / CONFIG), config)


def _check_resumed(folder: Path, saved: Config, config: Config):
    by_content = identity.fields(_fingerprints(folder, saved))
    before, tokens = saved.training.batch.tokens, config.training.batch.tokens
    as_long = configs.with_fields(config, tokens=min(before, tokens))
    if changed := configs.differences(saved, as_long, by_content):
        raise BadInput(
            f"--resume with another configuration than {folder} was started with: {'; '.join(changed)}; leave out "
            "these flags to resume it as it was, or give another --run"
        )
    if changed := configs.differences(saved, config, by_content):
        flags = configs.flags_for_longer(saved, config)
        fix = f"add {flags}" if flags else f"start another --run with --init-from {folder}"
        raise BadInput(
            f"--resume with --tokens {tokens} instead of {before} would change more than the length of {folder}: "
            f"{'; '.join(changed)}; to train for longer, {fix}"
        )


def _fingerprints(folder: Path, saved: Config) -> dict[str, str]:
    return identity.saved(read(folder / MANIFEST), saved.lm.process_weights)


def check_identity(folder: Path, config: Config, fingerprints: dict[str, str]):
    """Raises BadInput if a resumed run was started on other data or another model, or if processes differ in it."""
    first, *others = map(json.loads, processes.exchange(json.dumps(fingerprints)))
    for process, other in enumerate(others, 1):
        if kinds := identity.changed(first, other):
            raise BadInput(
                f"process {process} has other data than process 0: "
                f"{identity.described(kinds, config, first, other)}; give both the same files"
            )
    was = processes.on_primary(partial(_fingerprints, folder, config))
    if kinds := identity.changed(was, fingerprints):
        raise BadInput(
            f"--resume with other data than {folder} was started with: "
            f"{identity.described(kinds, config, was, fingerprints)}; give the place of what it was started with, or "
            "another --run"
        )


def check_order(folder: Path, order: str):
    """Raises BadInput if a resumed run would read its data in another order, which `Source.order_name` tells."""
    if (before := read(folder / MANIFEST).get("data_order")) not in (None, order):
        raise BadInput(
            f"--resume would read the data in another order ({order}) than {folder} did ({before}): give the --tokens "
            f"that it was started with, or start another --run with --init-from {folder}"
        )


def write_facts(folder: Path, config: Config, mesh: jax.sharding.Mesh, facts: dict):
    """config.json as the run was started, manifest.json as it runs now; `facts` are those of `RunInputs`.

    A resumed run may have more tokens, and find its data elsewhere: config.json then says the new ones. Raises BadInput
    if hosts share no disk.
    """
    processes.on_primary(partial(_write_facts, folder, config, mesh, facts))
    if processes.is_distributed():
        _check_shared(folder)


def _write_facts(folder: Path, config: Config, mesh: jax.sharding.Mesh, facts: dict):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).exists():
        atomic.write_text(folder / CONFIG, configs.to_json(config))
    elif (saved := configs.from_json(folder / CONFIG)) != (current := configs.resumed(saved, config)):
        atomic.write_text(folder / CONFIG, configs.to_json(current))
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
            "seed": config.training.batch.seed,
            **facts,
        },
    )


def _check_shared(folder: Path):
    """Raises BadInput if a process does not see what process 0 writes."""

    def leave_a_mark():
        mark = folder / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        return mark.name

    mark = folder / processes.on_primary(leave_a_mark)

    def look():
        until = time.monotonic() + VISIBILITY_TIMEOUT_S
        # Listing a folder makes a network disk look again, asking for one file need not.
        while not folder.is_dir() or mark.name not in os.listdir(folder):
            if time.monotonic() > until:
                raise BadInput(
                    f"--run {folder} is not one folder: process {jax.process_index()} does not see what process 0 "
                    "writes there; give a folder on a disk that all hosts share"
                )
            time.sleep(0.1)

    try:
        processes.on_all(look)
    finally:
        if processes.is_primary():
            mark.unlink(missing_ok=True)


def _git_commit() -> str | None:
    """The commit of the code that runs, if it runs from a checkout of its own and there is git."""
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
