"""SAELens's SAETrainer with its TopKTrainingSAE, both with their defaults: Adam at a constant 3e-4, gradients clipped
at norm 1, AuxK of latents that are silent for 1000 steps, activations as they are.
"""

from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.peers.training import Batches, timed, write_reconstruction

PACKAGES = ("sae-lens", "torch")


def train(settings: dict) -> dict:
    batches = Batches(settings)
    sizes = {
        "total_training_samples": len(batches) * batches.size,
        "train_batch_size_samples": batches.size,
        "device": batches.device,
    }
    lr = settings["factor"] * SAETrainerConfig(**sizes).lr
    config = TopKTrainingSAEConfig(d_in=batches.width, d_sae=settings["n"], k=settings["k"], device=batches.device)
    sae = TopKTrainingSAE(config)
    # lr_end is what its runner sets; a constant schedule does not use it.
    trainer = SAETrainer(SAETrainerConfig(**sizes, lr=lr, lr_end=lr / 10), sae, iter(batches))
    spent = timed(trainer.fit)
    sae.save_inference_model(settings["out"])
    saved = SAE.load_from_disk(settings["out"], device="cpu")
    write_reconstruction(settings, saved)
    return {"lr": lr, "saved": settings["out"], **spent}
