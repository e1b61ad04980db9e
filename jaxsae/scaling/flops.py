"""One count of FLOPs, for the summary of a run, for plans and for benchmarks. n latents, d width, s slots of a code.

Counted are products, 2 FLOPs for each multiplication and addition, and the optimizer. Left out are comparisons (top-k,
thresholds), what costs O(d) or O(s) a token (normalisation, losses, activation functions; O(n) of a dense family),
attention's products of positions in the language model, and the second forward pass that AuxK and finetune_kl take
under micro-batches.

    parts = training(config.sae, d, batch_size=2048)
    sum(parts.values())  # FLOPs per token
"""

from jaxsae.sae import activation_functions
from jaxsae.sae.auxk import KEPT, ROWS
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.decoder import KINDS


def dense(n: int, d: int, d_out: int | None = None) -> int:
    """FLOPs per token of the dense-equivalent autoencoder: encoder, decoder and their gradients, six products."""
    return 6 * n * (d + (d_out or d))


def autoencoder(
    sae: SAEConfig, d: int, n: int | None = None, slots: float | None = None, d_out: int | None = None
) -> dict[str, float]:
    """FLOPs per token of one training step, forward and backward, by part.

    select    pre-activations of all latents
    decode    every view's reconstruction, and the values if the selection knows them only roughly
    gradient  of weights and values
    skip      of a skip transcoder: the connection and its gradient

    `n` and `slots` are those of one shard of the latents; default: all of them. Slots are the most that a token may
    need, which is more than it uses if their number depends on the data (batch_topk). `d_out`: the width of a
    transcoder's output.
    """
    d_out = d_out or d
    family, views = activation_functions.get(sae.activation), n_views(sae)
    n = sae.n if n is None else n
    s = n if family.dense else n_slots(sae) if slots is None else slots
    gate = family.gate_values is not None  # one more reconstruction, which sends no gradient to W_dec
    return {
        "select": 2 * n * d,
        "decode": 2 * s * ((views + gate) * d_out + recomputes(sae) * d),
        # To W_enc once; from each view to W_dec and to the values.
        "gradient": 2 * s * (d + (2 * views + gate) * d_out),
    } | ({"skip": 4 * d * d_out} if sae.skip else {})


def n_views(sae: SAEConfig) -> int:
    """How many reconstructions training compares: those of the activation function, at every Matryoshka prefix."""
    return len(activation_functions.get(sae.activation).weights) * max(1, len(sae.prefixes))


def n_slots(sae: SAEConfig) -> int:
    """Slots that a token may need in training; n for a dense family."""
    return activation_functions.get(sae.activation).slots(sae.n, sae.k, True)


def recomputes(sae: SAEConfig) -> bool:
    """Whether pre-activations are computed again after the selection, which was not in float32 or of a crosscoder."""
    return (sae.select_precision != "float32" or sae.sections > 1) and not activation_functions.get(
        sae.activation
    ).dense


def auxk(n: int, d: int, dead: float, kept: int = KEPT, d_out: int | None = None) -> float:
    """FLOPs per token of AuxK on one shard of n latents, of which the share `dead` is dead; `d_out` is the width of a
    transcoder's output.

    Dead latents fill blocks of ROWS. Pre-activations, reconstruction and three products of the gradient; beyond the
    first `kept` blocks the pre-activations are computed three times more: for the threshold, and in both directions.
    """
    rows = min(ROWS, n)
    blocks = -(-dead * n // rows)
    # Of the five products two have the width of the input.
    return (blocks * (2 * d + 3 * (d_out or d)) + 3 * max(0, blocks - kept) * d) * 2 * rows


def optimizer(sae: SAEConfig, d: int, ema: bool = True, n: int | None = None, d_out: int | None = None) -> int:
    """FLOPs per step of the update of n latents: Adam 14 and the gradient's norm 2 for each weight, the average of the
    weights 3, and 11 for each weight of a decoder whose rows are kept at norm 1.
    """
    n, d_out = sae.n if n is None else n, d_out or d
    skip = (16 + 3 * ema) * d * d_out if sae.skip else 0
    return n * ((16 + 3 * ema) * (d + d_out + 1) + 11 * d_out * KINDS[sae.decoder].constrained) + skip


def training(
    sae: SAEConfig,
    d: int,
    batch_size: int,
    ema: bool = True,
    dead: float = 0.0,
    lm_passes: tuple[int, int] = (0, 0),
    lm: tuple[int, int] = (0, 0),
    d_out: int | None = None,
) -> dict[str, float]:
    """FLOPs per token of training, by part; their sum is the `flops` of a summary, divided by the tokens.

    `dead` is the mean share of dead latents that AuxK revives; 0 if AuxK is off. `lm_passes` are the objective's
    (prefix, suffix) passes of the language model, `lm` what one of each costs (`lm.architecture.flops`). The prefix
    that makes the activations of an objective that reads rows is not in it: it costs `lm[0]` per token, but only if the
    activations do not come from files, and it is the same whatever is trained on them.
    """
    return autoencoder(sae, d, d_out=d_out) | {
        "auxk": auxk(sae.n, d, dead, d_out=d_out),
        "optimizer": optimizer(sae, d, ema, d_out=d_out) / batch_size,
        "lm": sum(count * flops for count, flops in zip(lm_passes, lm)),
    }
