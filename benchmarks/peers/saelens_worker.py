"""SAELens's TopK module and its own loss, with dense codes (its default) or its sparse ones."""

from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput

from benchmarks.peers.protocol import Built
from benchmarks.peers.torch_step import batch, dead_latents, put_to_sleep, training

PACKAGES = ("sae-lens", "torch")


def build(settings: dict) -> Built:
    x, dead = batch(settings), dead_latents(settings)
    # The backward pass of sparse codes fails with the rescaling that is its default.
    codes = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False} if settings["sparse"] else {}
    config = TopKTrainingSAEConfig(
        d_in=settings["d"], d_sae=settings["n"], k=settings["k"], device=settings["device"], **codes
    )
    sae = TopKTrainingSAE(config)
    put_to_sleep(sae.W_enc.mT, dead)
    batch_input = TrainStepInput(x, {}, dead, n_training_steps=0, is_logging_step=False)
    return training(lambda: sae.training_forward_pass(batch_input).loss, sae.parameters(), settings)
