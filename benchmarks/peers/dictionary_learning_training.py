"""dictionary_learning's trainSAE with its TopKTrainer: Adam at a constant 2e-4 / sqrt(n / 2^14) after a warm-up,
gradients clipped at norm 1, the decoder's bias from the geometric median of the first batch, AuxK of latents that are
silent for 10 million tokens.

The warm-up is its own of 1000 steps; it refuses runs that are no longer than that, and they have one of a tenth of
their steps. Activations are as they are, its default, or with "normalise_activations" scaled to mean squared norm 1.
"""

from pathlib import Path

from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE

from benchmarks.peers.training import Batches, timed, write_reconstruction

PACKAGES = ("dictionary-learning", "torch")

WARMUP = 1000


def train(settings: dict) -> dict:
    batches = Batches(settings)
    steps = len(batches)
    config = {
        "steps": steps,
        "activation_dim": batches.width,
        "dict_size": settings["n"],
        "k": settings["k"],
        "layer": 0,
        "lm_name": "activations",
        "seed": settings["seed"],
        "device": batches.device,
    }
    if steps <= WARMUP:
        config["warmup_steps"] = steps // 10
    lr = settings["factor"] * TopKTrainer(**config).lr
    spent = timed(
        lambda: trainSAE(
            batches,
            [{"trainer": TopKTrainer, "lr": lr, **config}],
            steps,
            save_dir=settings["out"],
            normalize_activations=settings.get("normalise_activations", False),
            device=batches.device,
        )
    )
    saved = Path(settings["out"]) / "trainer_0"
    write_reconstruction(settings, AutoEncoderTopK.from_pretrained(saved / "ae.pt", device="cpu"))
    return {"lr": lr, "saved": str(saved), **spent}
