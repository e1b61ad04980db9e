"""The settings of the autoencoder and of its training; each field is a flag of `jaxsae train`."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxsae.errors import BadInput
from jaxsae.precision import Products
from jaxsae.sae import activations
from jaxsae.sae.activations.interface import Terms
from jaxsae.sae.auxk import default_k_aux
from jaxsae.sae.init import Init
from jaxsae.sae.select import Selection
from jaxsae.sae.struct import Decoder, Normalise, Spec


@dataclass(frozen=True)
class SAEConfig:
    n: int = 4096
    """Number of latents."""
    k: int = 32
    """Latents kept per token."""
    activation: Literal[tuple(activations.REGISTRY)] = "topk"
    """Activation function."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: numbers of first latents that must reconstruct by themselves too."""
    init: Init = "tied"
    """First weights: tied, the encoder parallel to a random decoder (Gao et al. 2024), or orthogonal, PyTorch's default
    encoder and a tight frame as decoder (Braun et al. 2024)."""
    penalty: str = ""
    """Sparsity term of families that have one; their own unless given: l1, lp, tanh, l0, gate."""
    p: float = 1.0
    """Exponent of the penalty lp."""
    bandwidth: float = 0.001
    """Width of the straight-through gradients of jumprelu's thresholds."""
    target_l0: float | None = None
    """The penalty becomes (penalty / target - 1)^2: with jumprelu's l0, the L0 that training steers to,
    and starts from."""
    normalise: Normalise = "unit_norm"
    """Per-token normalisation, saved with the autoencoder: unit_norm as in Gao et al. 2024, ln_std as in their code."""
    decoder: Decoder = "unit_norm"
    """Keep decoder rows at norm 1 (projected gradient, renormalised after each step), leave them free, or divide them
    by their norms wherever they are used."""
    subtract_b_dec: bool = True
    """Subtract the decoder's bias from the input of the encoder."""
    select: Products = "float32"
    """Precision of the product that chooses latents; values and gradients are exact whatever it is."""
    select_memory: float = 1.0
    """Gigabytes per device that the pre-activations of all latents may take; beyond it they are made in blocks."""

    def __post_init__(self):
        if self.n < 1:
            raise BadInput(f"--sae.n is {self.n}: give at least 1 latent")
        if not 1 <= self.k <= self.n:
            raise BadInput(f"--sae.k is {self.k}: allowed is 1 to --sae.n, which is {self.n}")
        if not 0 < self.select_memory < math.inf:
            raise BadInput(f"--sae.select-memory is {self.select_memory}: give a positive number of gigabytes")
        allowed = activations.get(self.activation).penalties
        if self.penalty and self.penalty not in allowed:
            raise BadInput(f"--sae.penalty is {self.penalty}: {self.activation} allows {', '.join(allowed) or 'none'}")
        if self.target_l0 is not None and "l0" not in allowed:
            steered = [name for name, family in activations.REGISTRY.items() if "l0" in family.penalties]
            raise BadInput(
                f"--sae.target-l0 is given: {self.activation} has no penalty l0 that steers, {', '.join(steered)} has"
            )
        if self.target_l0 is not None and self.penalty not in ("", "l0"):
            raise BadInput(f"--sae.target-l0 is given: it steers --sae.penalty l0, not {self.penalty}")
        if self.p != 1 and self.penalty != "lp":
            raise BadInput(f"--sae.p is {self.p}: it is of --sae.penalty lp, give that too or leave it out")
        if not 0 < self.p <= 1 or not 0 < self.bandwidth < math.inf:
            raise BadInput(f"--sae.p is {self.p}, --sae.bandwidth {self.bandwidth}: give 0 < p <= 1, bandwidth > 0")
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.n:
            raise BadInput(f"--sae.target-l0 is {self.target_l0}: allowed is above 0 to --sae.n, which is {self.n}")
        if list(self.prefixes) != sorted({m for m in self.prefixes if 0 < m <= self.n}) or (
            self.prefixes and self.prefixes[-1] != self.n
        ):
            raise BadInput(f"--sae.prefixes {self.prefixes}: give rising numbers, the last one --sae.n, {self.n}")

    def terms(self) -> Terms:
        return Terms(self.penalty, self.p, self.bandwidth)

    def selection(self) -> Selection:
        return Selection(self.select, int(self.select_memory * 1e9))

    def spec(self) -> Spec:
        return Spec(self.activation, self.k, self.normalise, self.decoder, self.subtract_b_dec, tuple(self.prefixes))


@dataclass(frozen=True)
class TrainingConfig:
    objective: Literal["local", "e2e", "e2e_downstream", "finetune_kl"] = "local"
    """What is minimised: local, the reconstruction error of the activation itself; e2e, the KL divergence of the
    model's predictions; e2e_downstream, that and errors of the residual stream at later hook points; finetune_kl, KL
    and reconstruction error in equal parts."""
    start: str | None = None
    """Start from a saved autoencoder: a run, an exported folder, or a safetensors file."""
    kl_coef: float | None = None
    """Weight of the KL divergence; 1 for e2e, 0.5 for e2e_downstream, unless given."""
    downstream_coef: float = 2.5
    """Total weight of the errors at later hook points, divided equally among them."""
    downstream_hooks: tuple[str, ...] = ()
    """The later hook points; the residual stream before every later block unless given."""
    reconstruction_coef: float = 0.0
    """Weight of the reconstruction error in e2e and e2e_downstream; with 10 or so random weights need far fewer tokens
    than with the KL alone (experiments/e2e_topk.py)."""
    form: Literal["code", "paper"] = "code"
    """Losses as in the code of Braun et al. 2024, or as in their paper: squared errors summed over d, later ones
    divided by the number of blocks behind, KL(substituted || original) with weight 1. Both are meant with --error-unit
    one."""
    error_unit: Literal["variance", "one"] = "variance"
    """Unit of squared errors, here and at later hook points: the variance of the activations there, or one, as they
    are."""
    kl_chunk: int = 512
    """Tokens of a device whose logits exist at once."""
    remat: bool = False
    """Compute the language model's blocks again in the backward pass, to save memory."""
    tokens: int = 1_500_000
    """Tokens to train on; the last step may go over by less than a batch."""
    batch_size: int = 2048
    """Tokens per step."""
    micro_batches: int = 1
    """Parts that a batch is computed in, to save memory; the update is that of the whole batch."""
    lr: float | None = None
    """Learning rate; 2e-4 / sqrt(n / 2^14) unless given."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls behind the warm-up, to --lr-end of it at the end of the run."""
    warmup: int = 0
    """Tokens over which the learning rate rises from 0."""
    lr_end: float = 0.1
    """Share of the learning rate that the schedule ends at."""
    adam_eps: float = 6.25e-10
    """Adam's epsilon (Gao et al. 2024, app. A.3)."""
    clip: float | None = None
    """Largest norm of the gradient, which is scaled down to it; without bound unless given."""
    seed: int = 0
    """Seed of the weights and of the order of the data."""
    sparsity: float | None = None
    """Weight of the sparsity term of families that have one; 1 for a count of latents and 10 for a norm, unless
    given."""
    auxk_coef: float | None = None
    """Weight of AuxK, the loss that revives dead latents, 0 for none; 1/32 for the TopK families trained locally, else
    none, unless given."""
    k_aux: int | None = None
    """Dead latents used per token by AuxK; the power of two closest to d / 2 unless given."""
    dead_after: int | None = None
    """Idle tokens after which a latent is dead; 10 million, or a fifth of the run where that is less, unless given."""
    resample_every: int | None = None
    """Tokens after which dead latents start again from badly reconstructed tokens (Bricken et al. 2023); never unless
    given."""
    resamples: int = 4
    """How often they do."""
    ema: float | None = None
    """Decay of the average of the weights that is exported, 0 for none; 0.999, or an average over a tenth of the run
    where that is shorter, unless given."""
    mesh: tuple[int, int] | None = None
    """Devices along `data` and along `latent`; all on `data`, or on `latent` where the state needs it, unless given."""

    def __post_init__(self):
        for name in ("tokens", "batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} is {getattr(self, name)}: give at least 1")
        if self.batch_size % self.micro_batches:
            raise BadInput(
                f"--batch-size {self.batch_size} does not divide into --micro-batches {self.micro_batches}: "
                f"give a multiple of {self.micro_batches}"
            )
        combined = self.objective in ("e2e", "e2e_downstream")
        only = {
            "kl_coef": self.kl_coef is not None and not combined,
            "reconstruction_coef": self.reconstruction_coef != 0 and not combined,
            "downstream_hooks": self.downstream_hooks and self.objective != "e2e_downstream",
            "form": self.form != "code" and self.objective == "finetune_kl",
        }
        for name in [name for name, given in only.items() if given]:
            raise BadInput(f"--{name.replace('_', '-')} has no meaning for --objective {self.objective}: leave it out")
        if self.warmup >= self.tokens:
            raise BadInput(f"--warmup {self.warmup} is no less than --tokens {self.tokens}: give less")
        for name in ("kl_coef", "downstream_coef", "reconstruction_coef", "sparsity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise BadInput(f"--{name.replace('_', '-')} is {value}: give 0 or more")
        if self.kl_chunk < 1 or self.warmup < 0:
            raise BadInput(f"--kl-chunk is {self.kl_chunk}, --warmup {self.warmup}: give at least 1 and at least 0")
        if not 0 <= self.lr_end <= 1:
            raise BadInput(f"--lr-end is {self.lr_end}: allowed is 0 to 1")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise BadInput(f"--clip is {self.clip}: give a positive norm")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise BadInput(f"--ema is {self.ema}: allowed is 0 (off) up to, not including, 1")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise BadInput(f"--lr is {self.lr}: give a positive learning rate")
        if self.auxk_coef is not None and not 0 <= self.auxk_coef < math.inf:
            raise BadInput(f"--auxk-coef is {self.auxk_coef}: give 0 (off) or more")
        if not 0 < self.adam_eps < 1:
            raise BadInput(f"--adam-eps is {self.adam_eps}: give a small positive number")
        for name in ("k_aux", "dead_after", "resample_every", "resamples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"--{name.replace('_', '-')} is {getattr(self, name)}: give at least 1")
        if self.resample_every is not None:
            last = max(self.resample_steps(), default=0) * self.batch_size
            if last < self.dead_window():
                raise BadInput(
                    f"--resample-every is {self.resample_every}: the last one of this run, behind {last} tokens, "
                    f"finds no dead latents, which take {self.dead_window()} idle tokens: give more --resamples, or "
                    f"--dead-after below {self.resample_every}"
                )
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed is {self.seed}: allowed is 0 to 2^32 - 1")

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.batch_size)

    def learning_rate(self, n: int) -> float:
        """The rule read off fig. 3 of Gao et al. 2024: 2e-4 / sqrt(n / 2^14)."""
        return self.lr if self.lr is not None else 2e-4 / (n / 2**14) ** 0.5

    def auxk_weight(self, activation: str) -> float:
        """1/32 (app. A.2) where exactly so many latents are active as k says; families with a penalty choose theirs."""
        if self.auxk_coef is not None:
            return self.auxk_coef
        return 1 / 32 if self.objective == "local" and not activations.get(activation).penalties else 0.0

    def sparsity_weight(self, sae: SAEConfig) -> float:
        """A first guess, to be swept: where errors are in units of the variance and inputs have norm 1, it leaves tens
        to hundreds of latents active after a million tokens."""
        penalty = sae.penalty or next(iter(activations.get(sae.activation).penalties), "")
        return self.sparsity if self.sparsity is not None else 1.0 if penalty in ("l0", "tanh") else 10.0

    def kl_weight(self) -> float:
        """Braun et al. 2024, app. D: 0.5 beside downstream errors."""
        half = self.objective == "e2e_downstream" and self.form == "code"
        return self.kl_coef if self.kl_coef is not None else 0.5 if half else 1.0

    def ema_decay(self) -> float:
        """0.999 (app. A.5), whose average spans about 1000 steps; short runs would drag their beginning along."""
        return self.ema if self.ema is not None else max(0.0, min(0.999, 1 - 10 / self.steps))

    def resample_steps(self) -> set[int]:
        """The steps behind which dead latents are resampled."""
        if self.resample_every is None:
            return set()
        every = max(1, self.resample_every // self.batch_size)
        return {every * time for time in range(1, self.resamples + 1) if every * time < self.steps}

    def dead_window(self) -> int:
        """Idle tokens after which a latent counts as dead."""
        return self.dead_after if self.dead_after is not None else max(1, min(10_000_000, self.tokens // 5))


def k_aux_of(sae: SAEConfig, training: TrainingConfig, d: int) -> int:
    """Dead latents used per token by AuxK, for activations of width d; never more than there are."""
    return min(default_k_aux(d) if training.k_aux is None else training.k_aux, sae.n)


def check_pieces(sae: SAEConfig, training: TrainingConfig):
    """Raises BadInput where the loss of a batch is not the sum of its pieces' losses."""
    whole_batch = activations.get(sae.activation).whole_batch
    if training.micro_batches > 1 and (whole_batch or sae.target_l0 is not None):
        what = f"{sae.activation} chooses latents" if whole_batch else "--sae.target-l0 holds the mean L0"
        raise BadInput(
            f"--micro-batches is {training.micro_batches}, but {what} over the whole batch: give --micro-batches 1"
        )
