"""Stand-ins for training: they write what a run folder needs, in no time."""

import json
import os
import signal
import time
from pathlib import Path

from jaxsae.config import Config, to_json
from jaxsae.errors import BadInput, Interrupted
from jaxsae.run import lock


def train(configs: dict[str, Config], on_done) -> dict[str, dict | Exception]:
    """Seed 13 diverges, seed 14 is refused, seed 15 takes its process with it, seed 16 all that it is trained with."""
    outcomes = {}
    for name, config in configs.items():
        outcomes[name] = _train(config)
        on_done(name, outcomes[name])
    return outcomes


def _train(config: Config) -> dict | Exception:
    folder, seed = Path(config.run), config.training.batch.seed
    if seed == 13:
        return FloatingPointError("loss became nan")
    if seed == 14:
        return BadInput("--hook is odd: give another")
    if seed == 16:
        raise MemoryError("out of memory")
    if seed == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    folder.mkdir(parents=True, exist_ok=True)
    with lock.hold(folder):
        (folder / "config.json").write_text(to_json(config))
        print(f"training {folder.name} on {len(os.sched_getaffinity(0))} cores")
        return _summarise(folder, config)


def _summarise(folder: Path, config: Config) -> dict:
    batch = config.training.batch
    row = {"step": 1, "tokens": batch.tokens, "tokens_per_second": 1000.0, "nmse": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    summary = {
        "tokens": batch.tokens,
        "nmse": round(1 / config.sae.n + batch.seed, 6),
        "flops": config.sae.n * batch.tokens,
        "tokens_per_second": time.time(),
        "eval_text": ["stdlib"],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def slowly(configs: dict[str, Config], on_done) -> dict[str, dict | Exception]:
    """Counts to ten in a file, once in 0.2 seconds, and goes on from there; saves when a signal says so."""
    return {name: _slowly(config) for name, config in configs.items()}


def _slowly(config: Config) -> dict:
    folder, asked = Path(config.run), []
    folder.mkdir(parents=True, exist_ok=True)
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    state = folder / "state"
    try:
        with lock.hold(folder):
            (folder / "config.json").write_text(to_json(config))
            for step in range(int(state.read_text()) if state.exists() else 0, 10):
                time.sleep(0.2)
                state.write_text(str(step + 1))
                if asked:
                    raise Interrupted(f"saved at {step + 1}", 128 + asked[0])
            return _summarise(folder, config)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
