"""Runs in delphi's own environment: what its LatentDataset reads from caches, and the examples that it makes of them.

    python delphi_reader.py FOLDER

Each FOLDER/NAME/latents is a cache as `jaxsae activations --to delphi` writes it; FOLDER/NAME/theirs.npz gets what was
read: tokens [C, T], locations [N, 3], activations [N], and of each explained latent its examples, windows of tokens and
of activations, and windows where it is silent.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents import LatentDataset
from delphi.latents.neighbours import NeighbourCalculator


def dataset(cache: Path, **construct) -> LatentDataset:
    # The tokenizer is the one that config.json names. Of the examples few are sampled, and so made strings.
    sampler = SamplerConfig(n_examples_train=10, n_examples_test=10)
    return LatentDataset(cache, sampler, ConstructorConfig(**construct))


def buffers(of: LatentDataset) -> dict[str, np.ndarray]:
    parts = [buffer.load()[:2] for buffer in of.buffers]
    locations, activations = (torch.cat(arrays).numpy() for arrays in zip(*parts))
    return {"tokens": of.tokens.numpy(), "locations": locations, "activations": activations.astype(np.float32)}


def stacked(examples: list, name: str) -> np.ndarray:
    return np.stack([getattr(example, name).numpy() for example in examples]) if examples else np.zeros((0, 32))


def records(of: LatentDataset) -> dict[str, np.ndarray]:
    """Of each explained latent: its number, its frequencies, how many examples it has, and their windows one after the
    other.
    """
    found = list(of)
    out = {
        "latents": [record.latent.latent_index for record in found],
        "frequencies": [(record.per_token_frequency, record.per_context_frequency) for record in found],
        "counts": [[len(group) for group in (r.examples, r.train, r.test, r.not_active)] for r in found],
        # There are none of a latent with fewer examples than quantiles.
        "texts": [record.train[0].str_tokens for record in found if record.train],
    }
    for group in ("examples", "train", "not_active"):
        windows = [example for record in found for example in getattr(record, group)]
        out |= {f"{group}_{name}": stacked(windows, name) for name in ("tokens", "activations")}
    return {name: np.asarray(values) for name, values in out.items()}


def neighbours(cache: Path):
    """The file of neighbours by co-occurrence, which delphi counts on a GPU alone: here a tensor is moved nowhere."""
    torch.Tensor.cuda = lambda self, *_: self
    for module in cache.iterdir():
        calculator = NeighbourCalculator(cache_dir=module, number_of_neighbours=10)
        calculator.populate_neighbour_cache("co-occurrence")
        cache.with_name("neighbours").mkdir(exist_ok=True)
        calculator.save_neighbour_cache(str(cache.with_name("neighbours") / module.name))


def main(root: Path):
    torch.set_num_threads(1)
    for folder in sorted(root.iterdir()):
        cache, job = folder / "latents", json.loads((folder / "job.json").read_text())
        read = dataset(cache, **job)
        out = buffers(read) | records(read)
        centred = records(dataset(cache, center_examples=False, n_non_activating=0, **job))
        out |= {f"centred_{name}": centred[name] for name in ("latents", "counts", "examples_tokens")}
        if not job:
            neighbours(cache)
            of_neighbours = records(dataset(cache, non_activating_source="neighbours"))
            out |= {f"neighbours_{name}": of_neighbours[name] for name in ("latents", "counts", "not_active_tokens")}
        np.savez(folder / "theirs.npz", **out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
