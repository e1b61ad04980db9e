"""What the training workers of the PyTorch libraries share: activations, the clock, and the check of what was saved.

`settings` of a worker's train(settings):

    rows, batch_size, n, k, seed, device, cores    the activations (.npy, float32 [steps B, d]) and the size of it all
    factor                                         of the library's own default learning rate
    out                                            folder to save the autoencoder in, as the library itself saves it
    check, reconstructed                           rows (.npy) that the saved autoencoder reconstructs, and where to
"""

import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch


class Batches:
    """The batches [B, d] in the order of the file; every iteration begins with the first one."""

    def __init__(self, settings: dict):
        """Also sets PyTorch's threads and seed."""
        torch.set_num_threads(settings["cores"])
        torch.manual_seed(settings["seed"])
        self.rows = np.load(settings["rows"], mmap_mode="r")
        self.size, self.width, self.device = settings["batch_size"], self.rows.shape[1], settings["device"]

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __getitem__(self, number: int) -> torch.Tensor:
        rows = np.array(self.rows[number * self.size : (number + 1) * self.size])
        return torch.from_numpy(rows).to(self.device)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[number] for number in range(len(self)))


def timed(fit: Callable[[], object]) -> dict:
    """{"seconds", "cpu_seconds"} of a call."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    fit()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": _cpu_seconds() - cpu}


def _cpu_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


@torch.no_grad()
def write_reconstruction(settings: dict, reconstruct: Callable[[torch.Tensor], torch.Tensor]):
    """Write what the library itself, given what it saved, makes of the rows `check`."""
    rows = torch.from_numpy(np.load(settings["check"]))
    np.save(settings["reconstructed"], reconstruct(rows).numpy())
