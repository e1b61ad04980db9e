"""What a run says of itself: the `about` of its export, and the table of its metrics."""

import os
from pathlib import Path

from jaxsae import __version__
from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.data.text import is_path
from jaxsae.lm.weights import EMBEDDED


def about(config: Config, facts: dict, mse_scale: float, summary: dict) -> dict:
    """What `jaxsae.describe` says. No time and no path of the run, so that equal runs export equal bytes.

    `facts` are those of manifest.json that the configuration leaves open: hook, width, data_fingerprint. The
    configuration itself is in it, so that an export is evaluated exactly as its run is; the rest is what people look
    for first.
    """
    config = _as_exported(config, facts["hook"])
    data, training = config.data, config.training
    reads_text = data.activations is None
    return {
        "config": configs.to_dict(config),
        "lm": config.lm.lm if reads_text else None,
        "process_weights": config.lm.process_weights,
        "hook": facts["hook"],
        "context": data.context,
        "skip_first": data.skip_first,
        "text": list(data.text) if reads_text else None,
        "activations": data.activations,
        "data_fingerprint": facts["data_fingerprint"],
        "objective": training.objective,
        "n": config.sae.n,
        "d": facts["width"],
        "steps": summary["step"],
        "tokens": summary["tokens"],
        "batch_size": training.batch.batch_size,
        "lr": training.learning_rate(config.sae.n),
        "ema": training.ema_decay(),
        "seed": training.batch.seed,
        "mse_scale": mse_scale,
        "dead_fraction": summary["dead_fraction"],
        "jaxsae": __version__,
    }


def _as_exported(config: Config, hook: str | None) -> Config:
    """The configuration without what does not change the result, and with paths that mean the same everywhere."""
    default, names = configs.fields_of(Config()), configs.MAY_CHANGE_ON_RESUME
    lm, data = config.lm.lm, config.data
    changes = {name: default[name] for name in names} | {"hook": hook}
    changes["lm"] = _absolute(lm) if lm != EMBEDDED and Path(lm).is_dir() else lm
    changes["text"] = tuple(_absolute(source) if is_path(source) else source for source in data.text)
    if data.activations is not None:
        changes["activations"] = _absolute(data.activations)
    return configs.with_fields(config, **changes)


def _absolute(path: str) -> str:
    """From the working folder; a pattern of names stays one."""
    return os.path.normpath(Path.cwd() / path)


def table(metrics: dict) -> str:
    """The metrics that people look at first, as text: the standard ones side by side, the other evaluations below."""
    columns = {"": "exported", "raw_": "without EMA", "no_pos0_": "no position 0"}
    columns = {p: title for p, title in columns.items() if f"{p}nmse" in metrics}
    names = ("nmse", "fvu", "l0", "dead_fraction", "ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered")
    lines = [f"{'held-out':<15}" + "".join(f"{title:>15}" for title in columns.values())] if columns else []
    for name in names if columns else ():
        values = [metrics.get(f"{p}{name}") for p in columns]
        if any(v is not None for v in values):
            lines.append(f"{name:<15}" + "".join(f"{_short(v):>15}" for v in values))
    for name, value in metrics.items():
        if isinstance(value, dict):
            lines += ["", name, *_tree(value, 1)]
    return "\n".join(lines)


def _short(value) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def _tree(values: dict, depth: int) -> list[str]:
    """Nested numbers as indented lines; what is no number is left to the file."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{'  ' * depth}{name}", *_tree(value, depth + 1)]
        elif isinstance(value, int | float):
            lines.append(f"{'  ' * depth + name:<44}{_short(value):>15}")
    return lines
