"""sparsify's Trainer as it is: its initialisation, optimizer, schedule, loss and files.

It trains on what a module of a language model puts out. Here the model is `Activations`, whose "token ids" are numbers
of rows: one sequence is a batch. The defaults are TrainConfig's: Signum without a schedule, 5e-3 / sqrt(n / 2^14), no
AuxK; or with "optimizer": "adam" Adam at 2e-4 / sqrt(n / 2^14), 1000 steps of warm-up and then a linear decay.
"""

from pathlib import Path

import numpy as np
import torch
from sparsify import SaeConfig, SparseCoder, TrainConfig, Trainer

from benchmarks.peers.training import Batches, timed, write_reconstruction

PACKAGES = ("eai-sparsify", "torch")

# The module of `Activations` that is trained on.
HOOK = "rows"


class Rows(torch.nn.Module):
    def __init__(self, batches: Batches):
        super().__init__()
        self._rows, self._device = batches.rows, batches.device

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers of rows [1, B] -> activations [1, B, d]."""
        start, count = int(numbers[0, 0]), numbers.shape[1]
        return torch.from_numpy(np.array(self._rows[start : start + count])).to(self._device)[None]


class Activations(torch.nn.Module):
    """What Trainer uses of a language model."""

    def __init__(self, batches: Batches):
        super().__init__()
        self.rows, self.device = Rows(batches), torch.device(batches.device)
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self):
        return self

    def forward(self, input_ids: torch.Tensor):
        return self.rows(input_ids)


class Numbers(torch.utils.data.Dataset):
    """The numbers of the rows of each batch, as a sequence of token ids."""

    def __init__(self, batches: Batches):
        self._size, self._count = batches.size, len(batches)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.arange(number * self._size, (number + 1) * self._size)}


def train(settings: dict) -> dict:
    batches = Batches(settings)
    data, model = Numbers(batches), Activations(batches)

    def trainer(lr: float | None) -> Trainer:
        config = TrainConfig(
            SaeConfig(num_latents=settings["n"], k=settings["k"]),
            batch_size=1,
            lr=lr,
            hookpoints=[HOOK],
            init_seeds=[settings["seed"]],
            # It saves at the end.
            save_every=len(batches) + 10,
            save_dir=settings["out"],
            run_name="run",
            log_to_wandb=False,
            **({"optimizer": settings["optimizer"]} if "optimizer" in settings else {}),
        )
        return Trainer(config, data, model)

    group = trainer(None).optimizers[0].param_groups[0]
    # A schedule with a warm-up has begun at 0.
    lr = settings["factor"] * group.get("initial_lr", group["lr"])
    spent = timed(trainer(lr).fit)
    saved = Path(settings["out"]) / "run" / HOOK
    sae = SparseCoder.load_from_disk(saved)
    write_reconstruction(settings, lambda x: sae.decode(*sae.encode(x)[:2]))
    return {"lr": lr, "saved": str(saved), **spent}
