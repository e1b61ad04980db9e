"""What a sweep shows while it runs: which runs are done, running and failed, how fast, and for how long still.

On a terminal, the runs that are being trained are a block of lines that is redrawn; what is over stays above it. In a
file there is a line for each event, and one on all of it now and then.
"""

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from jaxsae.config import Config
from jaxsae.sweep import folder as folders
from jaxsae.sweep.folder import DONE, FAILED, RUNNING, STOPPED, WAITING

# Seconds between two lines on all runs, where nothing can be redrawn.
EVERY_S = 60
# Running runs that are shown at a time.
SHOWN = 20


@dataclass(frozen=True)
class Progress:
    """How far a run is, as its log says."""

    tokens: int
    total: int
    rate: float | None = None  # tokens per second
    nmse: float | None = None

    @property
    def left(self) -> int:
        return max(0, self.total - self.tokens)


class Board:
    """Shows the states of runs on a stream."""

    def __init__(self, runs: Mapping[str, Config], out: Path, jobs: list[list[str]], at_once: int, stream: TextIO):
        self._runs, self._out, self._jobs, self._at_once, self._stream = runs, out, jobs, at_once, stream
        self._drawn, self._said, self._before = 0, -math.inf, None
        self._live = stream.isatty()

    def show(self, states: Mapping[str, str], summaries: Mapping[str, dict]):
        """Say what has changed, and draw what is running."""
        events = (
            []
            if self._before is None
            else [self._event(name, state, summaries) for name, state in states.items() if state != self._before[name]]
        )
        self._before = dict(states)
        progress = {name: self._progress(name) for name, state in states.items() if state == RUNNING}
        lines = [line for line in events if line]
        if self._live:
            block = [self._line(name, progress[name]) for name in list(progress)[:SHOWN]]
            block += [f"  and {len(progress) - SHOWN} more"] if len(progress) > SHOWN else []
            self._redraw(lines, [self._total(states, progress, summaries), *block])
        else:
            if time.monotonic() - self._said > EVERY_S or (lines and not progress):
                lines.append(self._total(states, progress, summaries))
                self._said = time.monotonic()
            self._write("".join(f"{line}\n" for line in lines))

    def leave(self):
        """Let the block that was drawn last stand, and draw the next one below it."""
        self._drawn = 0

    def _redraw(self, lines: list[str], block: list[str]):
        width = shutil.get_terminal_size().columns
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        text = "".join(f"{line}\n" for line in lines) + "".join(f"{line[: width - 1]}\n" for line in block)
        self._write(f"{up}\x1b[J{text}")
        self._drawn = len(block)

    def _write(self, text: str):
        self._stream.write(text)
        self._stream.flush()

    def _progress(self, name: str) -> Progress:
        batch, row = self._runs[name].training.batch, folders.last_row(self._out, name)
        total = self._runs[name].training.steps * batch.batch_size
        return Progress(row.get("tokens", 0), total, row.get("tokens_per_second"), row.get("nmse"))

    def _event(self, name: str, state: str, summaries: Mapping[str, dict]) -> str:
        if state == DONE:
            summary = summaries.get(name, {})
            facts = [f"{key} {summary[key]:.4g}" for key in ("nmse", "l0", "delta_ce") if _is_number(summary.get(key))]
            return f"done     {name}  {'  '.join(facts)}".rstrip()
        if state == FAILED:
            return f"failed   {name}: {folders.failure(self._out, name)}"
        if state == STOPPED:
            return f"stopped  {name}"
        return f"started  {name}" if state == RUNNING and not self._live else ""

    def _line(self, name: str, progress: Progress) -> str:
        if not progress.rate:
            return f"  {name}  starting"
        if not progress.left:
            return f"  {name}  evaluating"
        left = duration(progress.left / progress.rate)
        facts = [f"{progress.tokens / progress.total:4.0%}", f"{progress.rate:,.0f} tokens/s", f"{left} left"]
        facts += [f"nmse {progress.nmse:.3f}"] if progress.nmse is not None else []
        return f"  {name}  {'  '.join(facts)}"

    def _total(self, states: Mapping[str, str], progress: Mapping[str, Progress], summaries: Mapping[str, dict]) -> str:
        counts = {
            state: sum(s == state for s in states.values()) for state in (DONE, RUNNING, WAITING, STOPPED, FAILED)
        }
        text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        left = self.seconds_left(states, progress, summaries)
        rate = sum(p.rate for p in progress.values() if p.rate)
        text += f"; {rate:,.0f} tokens/s" if rate else ""
        count = f"{len(states)} run{'' if len(states) == 1 else 's'}"
        return f"{count}: {text}" + (f"; about {duration(left)} left" if left else "")

    def seconds_left(
        self, states: Mapping[str, str], progress: Mapping[str, Progress], summaries: Mapping[str, dict]
    ) -> float | None:
        """Seconds until all jobs are over; None as long as no run says how fast it is.

        A run that has not begun is taken to be as fast as the one with the most similar number of latents. Runs of one
        job are trained at the same time.
        """
        rates = {name: p.rate for name, p in progress.items() if p.rate}
        rates |= {name: s["tokens_per_second"] for name, s in summaries.items() if s.get("tokens_per_second")}
        if not rates:
            return None
        size = lambda name: math.log(self._runs[name].sae.n)
        jobs = []
        for names in self._jobs:
            seconds = [0.0]
            for name in names:
                if states[name] in (DONE, FAILED):
                    continue
                like = name if name in rates else min(rates, key=lambda other: abs(size(other) - size(name)))
                seconds.append(self._progress(name).left / rates[like])
            jobs.append(max(seconds))
        return max(sum(jobs) / self._at_once, max(jobs, default=0.0))


def duration(seconds: float) -> str:
    """0:45, 12:03 or 3:04:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
