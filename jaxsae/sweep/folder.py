"""The folder of a sweep: DIR/NAME of each run, DIR/results.csv, and DIR/sweep with what the sweep itself needs.

    DIR/sweep/configs/NAME.json   what each run is trained with
    DIR/sweep/logs/NAME.log       what its process printed
    DIR/sweep/failed/NAME.txt     why it failed; gone when it is tried again

What state a run is in is read from these files alone, so that whoever trains it need not be a child of the sweep.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.errors import BadInput
from jaxsae.io import atomic
from jaxsae.run import folder as folders
from jaxsae.run.folder import CONFIG, SUMMARY
from jaxsae.run.inputs import with_origin
from jaxsae.training.logs import METRICS

OWN, RESULTS = "sweep", "results.csv"
# No run can be called so.
RESERVED = (OWN, RESULTS)

# What a run can be: nothing of it there; begun, and nobody trains it; in training; failed; finished.
STATES = WAITING, STOPPED, RUNNING, FAILED, DONE = "waiting", "stopped", "running", "failed", "done"

# Changed runs that an error names.
NAMED = 5


def check(runs: Mapping[str, Config], out: Path):
    """Raises BadInput, before anything is written, if a run in `out` was started or finished with another result."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file: give a folder")
    problems = []
    for name, config in runs.items():
        folder = out / name
        if not folder.exists():
            continue
        try:
            config = with_origin(replace(config, run=str(folder), resume=True))
            folders.check(folder, config)
            if (folder / SUMMARY).exists():
                _check_length(folder, config)
        except BadInput as error:
            problems.append(f"{name}: {error}")
    if problems:
        rest = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise BadInput(
            f"{len(problems)} of the runs in {out} differ from what is there: {'; '.join(problems[:NAMED])}{rest}; "
            "give another --out, or other names"
        )


def _check_length(folder: Path, config: Config):
    """A finished run is not trained for longer by a sweep: what is skipped must be what was asked for."""
    before = configs.from_json(folder / CONFIG).training.batch.tokens
    if config.training.batch.tokens != before:
        raise BadInput(f"{folder} is finished, with --tokens {before}, not {config.training.batch.tokens}")


def make(out: Path):
    """Make the folder of a sweep. Raises BadInput if that is impossible."""
    try:
        for part in ("configs", "logs", "failed"):
            (out / OWN / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {out} cannot be written: {error}") from error


def write_configs(runs: Mapping[str, Config], out: Path):
    """Write the configuration of each run into the folder. Raises BadInput for what JSON cannot hold."""
    for name, config in runs.items():
        path = config_file(out, name)
        try:
            text = configs.to_json(replace(config, run=None, resume=False))
        except TypeError as error:
            raise BadInput(f"the configuration of {name} cannot be written as JSON: {error}") from error
        if not path.exists() or path.read_text() != text:
            atomic.write_text(path, text)


def config_file(out: Path, name: str) -> Path:
    return out / OWN / "configs" / f"{name}.json"


def read_config(out: Path, name: str) -> Config:
    """The configuration of a run as it is trained: in its folder, resumed if it was begun."""
    return replace(configs.from_json(config_file(out, name)), run=str(out / name), resume=True)


def log_file(out: Path, names: list[str]) -> Path:
    """What the process prints that trains these runs together."""
    return out / OWN / "logs" / f"{names[0]}.log"


def note_failure(out: Path, name: str, reason: str):
    atomic.write_text(_note(out, name), " ".join(reason.split()) + "\n")


def forget_failure(out: Path, name: str):
    _note(out, name).unlink(missing_ok=True)


def failure(out: Path, name: str) -> str | None:
    """Why a run failed, in one line; None if it did not."""
    with suppress(FileNotFoundError):
        return _note(out, name).read_text().strip()
    return None


def _note(out: Path, name: str) -> Path:
    return out / OWN / "failed" / f"{name}.txt"


def state(out: Path, name: str, in_hand: bool = False) -> str:
    """One of STATES; `in_hand` if a process is training it."""
    if (out / name / SUMMARY).exists():
        return DONE
    if _note(out, name).exists():
        return FAILED
    if in_hand:
        return RUNNING
    return STOPPED if (out / name / CONFIG).exists() else WAITING


def summary(out: Path, name: str) -> dict:
    """What summary.json of a run says; empty while there is none."""
    try:
        return json.loads((out / name / SUMMARY).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def last_row(out: Path, name: str) -> dict:
    """The newest whole row of metrics.jsonl, without reading the rest; empty if there is none."""
    with suppress(OSError), (out / name / METRICS).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 16_384))
        for line in reversed(file.read().split(b"\n")[:-1]):
            with suppress(ValueError):
                return json.loads(line)
    return {}
