"""What a run says of itself: the `about` of its export, how much it reads, and the table of its metrics."""

from jaxsae import __version__
from jaxsae import config as configs
from jaxsae.config import Config
from jaxsae.run.places import without_places

# More objects than these beside each other are not printed.
OBJECTS = 8


def about(config: Config, facts: dict, mse_scale: float, summary: dict) -> dict:
    """What `jaxsae.describe` says. No time and no place, so that equal runs export equal bytes on every machine.

    `facts` are those of manifest.json that the configuration leaves open: hook, width, fingerprints. The configuration
    itself is in it, so that an export is evaluated exactly as its run is; the rest is what people look for first.
    """
    config = _as_exported(config, facts["hook"])
    hook_out = {} if facts.get("hook_out") is None else {"hook_out": facts["hook_out"]}
    data, training = config.data, config.training
    reads_text = data.activations is None
    return {
        "config": configs.to_dict(config),
        "lm": config.lm.lm if reads_text or facts.get("lm") else None,
        "lm_dtype": config.lm.lm_dtype,
        "process_weights": config.lm.process_weights,
        "hook": facts["hook"],
        **hook_out,
        "context": data.context,
        "skip_first": data.skip_first,
        "skip_tokens": list(data.skip_tokens),
        "text": list(data.text) if reads_text else None,
        "activations": data.activations,
        "fingerprints": facts["fingerprints"],
        "objective": training.objective,
        "n": config.sae.n,
        "d": facts["width"],
        "steps": summary["step"],
        "tokens": summary["tokens"],
        "batch_size": training.batch.batch_size,
        "lr": training.learning_rate(config.sae),
        "ema": training.ema_decay(),
        "seed": training.batch.seed,
        "mse_scale": mse_scale,
        "dead_fraction": summary["dead_fraction"],
        "auxk_fraction": summary["auxk_fraction"],
        "jaxsae": __version__,
    }


def _as_exported(config: Config, hook: str | list[str] | None) -> Config:
    """The configuration without what does not change the result, and without the places of what was read."""
    default, names = configs.fields_of(Config()), configs.MAY_CHANGE_ON_RESUME
    return without_places(
        configs.with_fields(
            config, **{name: default[name] for name in names}, hook=tuple(hook) if isinstance(hook, list) else hook
        )
    )


def table(metrics: dict) -> str:
    """The metrics that people look at first, as text: the standard ones side by side, the other evaluations below."""
    columns = {"": "exported", "raw_": "without EMA", "no_pos0_": "no position 0"}
    columns = {p: title for p, title in columns.items() if f"{p}nmse" in metrics}
    names = ("nmse", "fvu", "l0", "dead_fraction", "ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered")
    lines = [*_heading(metrics), f"{'':<15}" + "".join(f"{title:>19}" for title in columns.values())] if columns else []
    for name in names if columns else ():
        values = [_short(metrics.get(f"{p}{name}")) for p in columns]
        errors = [metrics.get(f"{p}{name}_se") for p in columns]
        if any(values):
            cells = [v if e is None else f"{v} ± {_short(e)}" for v, e in zip(values, errors)]
            lines.append(f"{name:<15}" + "".join(f"{cell:>19}" for cell in cells).rstrip())
    for name, value in metrics.items():
        if isinstance(value, dict):
            lines += ["", name, *_tree(value, 1)]
    return "\n".join(lines)


def _heading(metrics: dict) -> list[str]:
    """What the numbers are of, in lines: the text of the evaluation, and that of training."""
    lines = []
    if metrics.get("eval_tokens") is not None:
        text, split = metrics["eval_text"], metrics["eval_split"]
        part = {"all": "all of", "held_out": "the held-out part of", "train": "the training part of"}[split]
        text = text if isinstance(text, str) else " ".join(text)
        context = metrics.get("eval_context")
        lines.append(f"on {metrics['eval_tokens']:,} tokens from {part} {text}")
        lines[-1] += f", in contexts of {context}" if context else ""
    if metrics.get("data_tokens") is not None:
        read = amount_read(metrics["data_tokens"], metrics["times_read"])
        lines.append(f"trained on {metrics['tokens']:,} tokens: {read}")
    return [*lines, ""] if lines else []


def amount_read(data_tokens: int, times_read: float) -> str:
    """How much there is to train on, in words, and how often it is read."""
    return f"the training data have {data_tokens:,} tokens, read {times_read:.3g} times"


def _short(value) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def _tree(values: dict, depth: int) -> list[str]:
    """Nested numbers as indented lines; what is no number, and long lists of objects, are left to the file."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict) and sum(isinstance(inner, dict) for inner in value.values()) > OBJECTS:
            lines.append(f"{'  ' * depth + name:<44}{f'{len(value)} in eval.json':>15}")
        elif isinstance(value, dict):
            lines += [f"{'  ' * depth}{name}", *_tree(value, depth + 1)]
        elif isinstance(value, int | float):
            lines.append(f"{'  ' * depth + name:<44}{_short(value):>15}")
    return lines
