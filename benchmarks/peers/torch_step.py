"""What the workers of the PyTorch libraries share: the fixed batch, the dead latents, and the step around a loss."""

from collections.abc import Callable, Iterable

import torch

from benchmarks.peers.protocol import Built


def batch(settings: dict) -> torch.Tensor:
    """Tokens [B, d] from N(0, 1) on the settings' device; also sets PyTorch's threads and seed."""
    torch.set_num_threads(settings["cores"])
    torch.manual_seed(0)
    return torch.randn(settings["B"], settings["d"], device=settings["device"])


def dead_latents(settings: dict) -> torch.Tensor | None:
    """Which latents [n] are held dead; None where AuxK is off."""
    if not settings["aux"]:
        return None
    return torch.arange(settings["n"], device=settings["device"]) % round(1 / settings["dead"]) == 0


@torch.no_grad()
def put_to_sleep(W_enc: torch.Tensor, dead: torch.Tensor | None):
    """Shrink the encoder rows, W_enc [n, d], of the dead, so that they don't fire."""
    if dead is not None:
        W_enc[dead] *= 1e-3


def training(loss: Callable[[], torch.Tensor], parameters: Iterable, settings: dict) -> Built:
    """The step: forward, backward, Adam, and the loss read at its end, when all the work is done."""
    optimizer, device = torch.optim.Adam(parameters, lr=settings["lr"]), settings["device"]
    bfloat16 = settings["precision"] == "bfloat16"

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    if device == "cpu":
        return Built(step, "cpu")
    return Built(step, torch.cuda.get_device_name(), lambda: torch.cuda.max_memory_allocated() / 1e6)
