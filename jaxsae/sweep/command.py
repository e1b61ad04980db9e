"""A sweep from its first run to its last: what is done is skipped, what was stopped resumes, what fails is reported."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from jaxsae.config import Config
from jaxsae.errors import BadInput, Interrupted
from jaxsae.run import lock, together
from jaxsae.run.runs import RunsFailed
from jaxsae.sweep import file, launchers, results
from jaxsae.sweep import folder as folders
from jaxsae.sweep.board import Board
from jaxsae.sweep.config import SweepConfig
from jaxsae.sweep.folder import DONE
from jaxsae.sweep.job import TRAIN
from jaxsae.sweep.launchers import Pool, Work

# Seconds between two looks at the files of runs.
POLL_S = 0.5
# Failed runs that the last line names; rows of the table at the end; and its columns.
NAMED, ROWS = 5, 60
COLUMNS = ("name", "status", "nmse", "l0", "dead_fraction", "delta_ce", "seconds")


def run(config: SweepConfig):
    """Do what `jaxsae sweep` was asked, and print what came out. Raises BadInput, Interrupted or RunsFailed."""
    path = Path(config.file)
    runs = file.read(path, config.preset)
    out = Path(config.out or Path("runs") / (f"{path.stem}-{config.preset}" if config.preset else path.stem))
    flags = getattr(config.launchers, config.launcher, None)
    command = [*_program(), "sweep", config.file, "--out", str(out)]
    command += ["--preset", config.preset] if config.preset else []
    command += ["--share", config.share] if config.share != "none" else []
    options = {"workers": config.workers, "share": config.share, "only": config.only, "command": command}
    show = launchers.REGISTRY[config.launcher].alone
    try:
        train_all(runs, out, config.launcher, flags, **options)
    except (Interrupted, RunsFailed):
        if show:
            print(table(runs, out))
        raise
    if show:
        print(table(runs, out))


def train_all(
    runs: Mapping[str, Config],
    out: Path,
    launcher: str = "local",
    config=None,
    *,
    workers: int | None = None,
    share: str = "none",
    only: Sequence[str] = (),
    command: Sequence[str] = (),
    train: str = TRAIN,
) -> dict[str, dict]:
    """{name: summary} of all runs (or of those in `only`), each trained in out/NAME unless it is done.

    `config` is that of the launcher. `command` is the command line that `print` adds to, `train` what trains runs, as
    MODULE:FUNCTION. Raises BadInput before anything is written if a run is in `out` with another configuration;
    Interrupted if a signal ended the sweep, after everything was saved; RunsFailed at the end if not all are done.
    """
    file.check(runs, "the sweep")
    if unknown := [name for name in only if name not in runs]:
        raise BadInput(f"--only {unknown[0]} is no run of this sweep: allowed are {', '.join(list(runs)[:20])}")
    kind = launchers.REGISTRY[launcher]
    folders.check(runs, out)
    names = only or list(runs)
    todo = {name: runs[name] for name in names if folders.state(out, name) != DONE}
    jobs = together.groups(todo, share) if todo else []
    work = Work(out, jobs, todo, workers, list(command), train)
    folders.make(out)
    with ExitStack() as stack:
        if kind.alone:
            stack.enter_context(lock.hold(out / folders.OWN, f"the sweep in {out}"))
        folders.write_configs(todo, out)
        if kind.alone:
            for name in todo:
                folders.forget_failure(out, name)
        pool = stack.enter_context(kind.start(work, config if config is not None else kind.Config()))
        view = _View(runs, work, pool) if kind.alone else None
        try:
            while pool.poll(POLL_S):
                if view:
                    view.refresh(pool.in_hand())
        except (KeyboardInterrupt, SystemExit) as stop:
            _stop(pool, view, stop)
        if view:
            view.refresh(set())
    if kind.waits:
        _check_done(out, names)
    return {name: folders.summary(out, name) for name in names}


def table(runs: Mapping[str, Config], out: Path) -> str:
    """What is in the folder of a sweep, as text: a row for each run, and where the whole table is."""
    states = {name: folders.state(out, name) for name in runs}
    summaries = {name: folders.summary(out, name) for name in runs}
    rows = results.rows(results.varied(runs), states, summaries, out)
    cells = [{key: _short(row.get(key, "")) for key in COLUMNS} for row in rows]
    widths = {key: max(len(key), *(len(row[key]) for row in cells)) for key in COLUMNS}
    lines = [
        f"{row['name']:<{widths['name']}}  " + "  ".join(f"{row[key]:>{widths[key]}}" for key in COLUMNS[1:])
        for row in [dict(zip(COLUMNS, COLUMNS)), *cells[:ROWS]]
    ]
    lines += [f"and {len(cells) - ROWS} more"] if len(cells) > ROWS else []
    return "\n".join([*map(str.rstrip, lines), "", f"saved in {out / folders.RESULTS}"])


class _View:
    """The table on the screen and the one on disk, kept to what runs do."""

    def __init__(self, runs: Mapping[str, Config], work: Work, pool: Pool):
        self._runs, self._out, self._states = runs, work.out, None
        self._fields, self._summaries = results.varied(runs), {}
        self._board = Board(runs, work.out, work.jobs, pool.at_once, sys.stderr)
        self.refresh(set())

    def refresh(self, in_hand: set[str]):
        done = self._summaries
        states = {n: DONE if n in done else folders.state(self._out, n, n in in_hand) for n in self._runs}
        done |= {n: folders.summary(self._out, n) for n, state in states.items() if state == DONE and n not in done}
        if states != self._states:
            results.write(results.rows(self._fields, states, done, self._out), self._out)
            self._states = states
        self._board.show(states, done)

    def leave(self):
        """Let what is drawn stand; what comes next is drawn below it."""
        self._board.leave()


def _stop(pool: Pool, view: _View | None, stop: BaseException):
    """Let all that runs save, and raise Interrupted."""
    if view:
        view.leave()
    print("jaxsae: stopping: what is being trained saves first; once more ends it at once", file=sys.stderr)
    pool.stop()
    if view:
        view.refresh(set())
    status = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
    raise Interrupted("the sweep was stopped; the same command resumes it", status) from stop


def _check_done(out: Path, names: Sequence[str]):
    """Raises RunsFailed unless all runs are done; it says why they are not."""
    reasons = {}
    for name in names:
        if folders.state(out, name) == DONE:
            continue
        reasons[name] = folders.failure(out, name) or "it was stopped; the same command resumes it"
        try:
            lock.check_free(out / name)
        except BadInput as error:
            reasons[name] = str(error)
    if reasons:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:NAMED])
        rest = f"; and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        raise RunsFailed(f"{len(reasons)} of {len(names)} runs are not done: {listed}{rest}")


def _program() -> list[str]:
    """How this process was started."""
    return ["jaxsae"] if Path(sys.argv[0]).stem == "jaxsae" else [sys.executable, "-m", "jaxsae.cli"]


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
