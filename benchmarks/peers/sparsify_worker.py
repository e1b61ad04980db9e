"""sparsify's module and loss. Its AuxK (1.3.3) sends no gradient to the encoder, so it does less than a right one."""

from sparsify import SaeConfig
from sparsify.sparse_coder import SparseCoder

from benchmarks.peers.protocol import Built
from benchmarks.peers.torch_step import batch, dead_latents, put_to_sleep, training

PACKAGES = ("eai-sparsify", "torch")


def build(settings: dict) -> Built:
    x, dead = batch(settings), dead_latents(settings)
    sae = SparseCoder(settings["d"], SaeConfig(num_latents=settings["n"], k=settings["k"]), settings["device"])
    put_to_sleep(sae.encoder.weight, dead)
    # On a GPU `forward` turns bfloat16 autocast on by itself: float32 is what it wraps.
    forward = sae.forward if settings["precision"] == "bfloat16" else sae.forward.__wrapped__.__get__(sae)

    def loss():
        out = forward(x, dead_mask=dead)
        return out.fvu + out.auxk_loss / 32

    return training(loss, sae.parameters(), settings)
