"""dictionary_learning's TopK module and its trainer's loss, which counts the tokens since each latent fired."""

from dictionary_learning.trainers.top_k import TopKTrainer

from benchmarks.peers.protocol import Built
from benchmarks.peers.torch_step import batch, dead_latents, put_to_sleep, training

PACKAGES = ("dictionary-learning", "torch")


def build(settings: dict) -> Built:
    x, dead = batch(settings), dead_latents(settings)
    trainer = TopKTrainer(
        steps=10_000,
        activation_dim=settings["d"],
        dict_size=settings["n"],
        k=settings["k"],
        layer=0,
        lm_name="none",
        auxk_alpha=1 / 32 if settings["aux"] else 0,
        device=settings["device"],
    )
    put_to_sleep(trainer.ae.encoder.weight, dead)

    def loss():
        if dead is not None:
            trainer.num_tokens_since_fired[dead] = trainer.dead_feature_threshold
        return trainer.loss(x, step=0)

    return training(loss, trainer.ae.parameters(), settings)
