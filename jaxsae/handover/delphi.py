"""delphi's activation cache (EleutherAI/delphi 0.1), from which it explains and scores latents without the autoencoder
and without the language model.

    DIR/MODULE/FIRST_LAST.safetensors   of latents FIRST to LAST: locations [N, 3] (context, position, latent - FIRST)
                                        in uint16 or uint32, activations [N] in float16, tokens [C, T]
    DIR/MODULE/config.json              what was read: model_name says which tokenizer
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals.subject import Subject
from jaxsae.handover.interface import Activations, Handover, collect

# Smaller values are left out, as delphi does.
LEAST = 1e-5


@dataclass(frozen=True)
class Config:
    splits: int = 5
    """Files that latents are divided into."""
    module: str | None = None
    """Name of the folder, by which delphi calls the autoencoder; default: its hook point."""
    model_name: str | None = None
    """Whose tokenizer delphi is to load: a folder or a hub name; default: the folder of the language model."""

    def __post_init__(self):
        if self.splits < 1:
            raise BadInput(f"--delphi.splits is {self.splits}: give at least 1")


def check(subject: Subject, config: Config):
    """Raises BadInput if there are more parts than latents."""
    if config.splits > subject.sae.n:
        raise BadInput(f"--delphi.splits is {config.splits}: allowed is up to the number of latents, {subject.sae.n}")


def write(subject: Subject, config: Config, folder: Path) -> list[str]:
    hooks = subject.hook_in or subject.hook
    module = folder / (config.module or (hooks if isinstance(hooks, str) else "+".join(hooks)))
    found = collect(subject)
    module.mkdir(parents=True)
    bounds = np.linspace(0, subject.sae.n, config.splits + 1).astype(int)
    for start, stop in pairwise(bounds.tolist()):
        _save(found, start, stop, module / f"{start}_{stop - 1}.safetensors")
    contexts, length = found.tokens.shape
    facts = {
        "dataset_repo": " ".join(subject.facts.get("eval_text") or []),
        "dataset_split": subject.facts.get("eval_split"),
        "dataset_name": "",
        "dataset_column": "text",
        "batch_size": 1,
        "cache_ctx_len": length,
        "ctx_len": length,
        "n_tokens": contexts * length,
        "n_splits": config.splits,
        "model_name": config.model_name or str(Path(subject.lm.folder).absolute()),
    }
    (module / "config.json").write_text(json.dumps(facts, indent=1) + "\n")
    return [f"{len(found.value):,} activations on {contexts * length:,} tokens in {module}"]


def _save(found: Activations, start: int, stop: int, path: Path):
    """The file of latents `start` to `stop`."""
    from safetensors.numpy import save_file

    mine = (found.latent >= start) & (found.latent < stop) & (found.value > LEAST)
    locations = np.stack([found.context[mine], found.position[mine], found.latent[mine] - start], 1)
    small = locations.max(initial=0) < 1 << 16
    arrays = {
        "locations": locations.astype(np.uint16 if small else np.uint32),
        # Larger ones would be infinite, and what delphi divides by them no number.
        "activations": np.minimum(found.value[mine], np.finfo(np.float16).max).astype(np.float16),
        "tokens": found.tokens,
    }
    save_file(arrays, path)


FORMAT = Handover(write, check, Config)
