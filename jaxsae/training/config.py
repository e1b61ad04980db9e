"""The configuration of training, in groups; each field is a flag of `jaxsae train`."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxsae.errors import BadInput
from jaxsae.flags import FLAT
from jaxsae.sae import activation_functions
from jaxsae.sae.auxk import default_k_aux
from jaxsae.sae.config import SAEConfig
from jaxsae.training import learning_rate, objectives
from jaxsae.training.objectives import ObjectiveConfigs, ObjectiveType


def _at_least(group, least, *names):
    for name in names:
        if getattr(group, name) is not None and getattr(group, name) < least:
            raise BadInput(f"--{name.replace('_', '-')} is {getattr(group, name)}: give at least {least}")


@dataclass(frozen=True)
class BatchConfig:
    """Tokens, batches and devices."""

    tokens: int = 1_048_576
    """Tokens to train on; the last step may go over by less than a batch."""
    batch_size: int = 2048
    """Tokens per step."""
    micro_batches: int = 1
    """Parts that a batch is computed in, to save memory; the update is that of the whole batch."""
    seed: int = 0
    """Seed of the weights, and of the order of the data."""
    data_seed: int | None = None
    """Seed of the order of the data, if it is to be another than --seed: runs that differ in --seed and agree in this
    read the same batches."""
    mesh: tuple[int, int] | None = None
    """Devices along `data` and along `latent`; default: all on `data`, or on `latent` if the state needs it."""

    def __post_init__(self):
        _at_least(self, 1, "tokens", "batch_size", "micro_batches")
        if self.batch_size % self.micro_batches:
            raise BadInput(
                f"--batch-size {self.batch_size} does not divide into --micro-batches {self.micro_batches}: "
                f"give a multiple of {self.micro_batches}"
            )
        for flag, seed in (("--seed", self.seed), ("--data-seed", self.data_seed or 0)):
            if not 0 <= seed < 2**32:
                raise BadInput(f"{flag} is {seed}: allowed is 0 to 2^32 - 1")

    @property
    def order_seed(self) -> int:
        """The seed that the order of the data depends on."""
        return self.seed if self.data_seed is None else self.data_seed


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, its learning rate, and the average of the weights."""

    lr: float | Literal["paper"] | None = None
    """Learning rate; default: the best one for so many steps by sweeps, 0.4 (k / n)^(1/4) / sqrt(steps), from that of
    `paper` up to 0.01, and less for jumprelu and prolu_ste. paper: 2e-4 / sqrt(n / 2^14), for training to convergence
    (Gao et al. 2024)."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Decay of the learning rate after the warm-up, to --lr-end times its peak at the end of the run."""
    warmup: int = 0
    """Tokens over which the learning rate rises from 0."""
    lr_end: float = 0.1
    """Share of the learning rate that the schedule ends at."""
    adam_eps: float = 6.25e-10
    """Adam's epsilon (Gao et al. 2024, app. A.3)."""
    grad_clip: float | None = None
    """Largest norm of the gradient, which is scaled down to it; default: no limit."""
    ema: float | None = None
    """EMA decay of the exported weights, 0 for off; default: 0.999, or an average over a tenth of the run if that is
    shorter."""

    def __post_init__(self):
        _at_least(self, 0, "warmup")
        if not 0 <= self.lr_end <= 1:
            raise BadInput(f"--lr-end is {self.lr_end}: allowed is 0 to 1")
        if self.grad_clip is not None and not 0 < self.grad_clip < math.inf:
            raise BadInput(f"--grad-clip is {self.grad_clip}: give a positive norm")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise BadInput(f"--ema is {self.ema}: allowed is 0 (off) up to, not including, 1")
        if self.lr not in (None, "paper") and not (isinstance(self.lr, (int, float)) and 0 < self.lr < math.inf):
            raise BadInput(f"--lr is {self.lr}: give a positive learning rate, or paper")
        if not 0 < self.adam_eps < 1:
            raise BadInput(f"--adam-eps is {self.adam_eps}: give a small positive number")


@dataclass(frozen=True)
class DeadLatentsConfig:
    """Latents that no longer fire, and what revives them."""

    dead_after: int | None = None
    """Idle tokens after which a latent is dead; default: 10 million, or a fifth of the run if that is less."""
    auxk_coef: float | None = None
    """Weight of AuxK, the loss that revives dead latents, 0 for off; default: 1/32 for the TopK families trained
    locally, else 0."""
    auxk_after: int | None = None
    """Idle tokens after which AuxK revives a latent; default: --dead-after if that is given, else 10 million, or an
    eightieth of the run if that is less."""
    k_aux: int | None = None
    """Dead latents used per token by AuxK; default: the power of two closest to d / 2."""
    resample_every: int | None = None
    """Tokens after which dead latents start again from badly reconstructed tokens (Bricken et al. 2023); default:
    never."""
    max_resamples: int = 4
    """How often they do."""

    def __post_init__(self):
        _at_least(self, 1, "dead_after", "auxk_after", "k_aux", "resample_every", "max_resamples")
        if self.auxk_coef is not None and not 0 <= self.auxk_coef < math.inf:
            raise BadInput(f"--auxk-coef is {self.auxk_coef}: give 0 (off) or more")


@dataclass(frozen=True)
class TrainingConfig:
    objective: Literal[tuple(objectives.REGISTRY)] = "local"
    """What is minimised: local, the reconstruction error of the activation itself; e2e, the KL divergence of the
    model's predictions; e2e_downstream, that and errors of the residual stream at later hook points; finetune_kl, KL
    and reconstruction error in equal parts."""
    init_from: str | None = None
    """Start from a saved autoencoder: a run, an exported folder, or a safetensors file."""
    mse_scale: Literal["variance", "none"] = "variance"
    """Squared errors are divided by the variance of the activations at their place, or left as they are."""
    sparsity: float | None = None
    """Weight of the sparsity term of families that have one; default: 1 for a count of latents, 10 for a norm."""
    objectives: Annotated[ObjectiveConfigs, FLAT] = field(default_factory=ObjectiveConfigs)
    batch: Annotated[BatchConfig, FLAT] = field(default_factory=BatchConfig)
    optimizer: Annotated[OptimizerConfig, FLAT] = field(default_factory=OptimizerConfig)
    dead: Annotated[DeadLatentsConfig, FLAT] = field(default_factory=DeadLatentsConfig)

    def __post_init__(self):
        if self.optimizer.warmup >= self.batch.tokens:
            raise BadInput(f"--warmup {self.optimizer.warmup} is no less than --tokens {self.batch.tokens}: give less")
        if self.sparsity is not None and not 0 <= self.sparsity < math.inf:
            raise BadInput(f"--sparsity is {self.sparsity}: give 0 or more")
        if (every := self.dead.resample_every) is not None:
            last = max(self.resample_steps(), default=0) * self.batch.batch_size
            if last < self.dead_window():
                raise BadInput(
                    f"--resample-every is {every}: the last one of this run, after {last} tokens, finds no dead "
                    f"latents, which take {self.dead_window()} idle tokens: give more --max-resamples, or --dead-after "
                    f"below {every}"
                )

    @property
    def type(self) -> ObjectiveType:
        """The objective's entry in the registry."""
        return objectives.get(self.objective)

    @property
    def steps(self) -> int:
        return -(-self.batch.tokens // self.batch.batch_size)

    def learning_rate(self, sae: SAEConfig) -> float:
        """--lr, or what it stands for with such an autoencoder."""
        lr, family = self.optimizer.lr, activation_functions.get(sae.activation)
        if lr is None:
            # Of a family with a penalty only a target says how many latents are active.
            active = (sae.sparsity.target_l0 or SAEConfig().k) if family.penalties else sae.k
            return family.rate * learning_rate.for_steps(sae.n, active, self.steps)
        return learning_rate.paper(sae.n) if lr == "paper" else lr

    def auxk_weight(self, activation: str) -> float:
        """1/32 (app. A.2) for families whose number of active latents k says exactly; others have a penalty."""
        if self.dead.auxk_coef is not None:
            return self.dead.auxk_coef
        return 1 / 32 if self.type.auxk and not activation_functions.get(activation).penalties else 0.0

    def sparsity_weight(self, sae: SAEConfig) -> float:
        """A first guess, to be swept: with errors in units of the variance and inputs of norm 1, it leaves tens to
        hundreds of latents active after a million tokens.
        """
        return self.sparsity if self.sparsity is not None else 1.0 if sae.penalty and sae.penalty.counts else 10.0

    def ema_decay(self) -> float:
        """0.999 (app. A.5), whose average spans about 1000 steps; short runs would drag their beginning along."""
        return self.optimizer.ema if self.optimizer.ema is not None else max(0.0, min(0.999, 1 - 10 / self.steps))

    def resample_steps(self) -> set[int]:
        """The steps after which dead latents are resampled."""
        if self.dead.resample_every is None:
            return set()
        every = max(1, self.dead.resample_every // self.batch.batch_size)
        return {every * i for i in range(1, self.dead.max_resamples + 1) if every * i < self.steps}

    def dead_window(self) -> int:
        """Idle tokens after which a latent counts as dead."""
        window = self.dead.dead_after
        return window if window is not None else max(1, min(10_000_000, self.batch.tokens // 5))

    def auxk_window(self) -> int:
        """Idle tokens after which AuxK revives a latent.

        Short runs cannot wait until one has been idle for long: it would have no time left to learn.
        """
        window = self.dead.auxk_after or self.dead.dead_after
        return window if window is not None else max(1, min(10_000_000, self.batch.tokens // 80))

    def k_aux(self, n: int, d: int) -> int:
        """Dead latents used per token by AuxK, for n latents and activations of width d; never more than there are."""
        return min(default_k_aux(d) if self.dead.k_aux is None else self.dead.k_aux, n)


def check_micro_batches(sae: SAEConfig, training: TrainingConfig):
    """Raises BadInput if the loss of a batch is not the sum of the losses of its micro-batches."""
    couples = activation_functions.get(sae.activation).couples_batch
    if training.batch.micro_batches > 1 and (couples or sae.sparsity.target_l0 is not None):
        what = f"{sae.activation} chooses latents" if couples else "--sae.target-l0 holds the mean L0"
        raise BadInput(
            f"--micro-batches is {training.batch.micro_batches}, but {what} over the whole batch: give "
            "--micro-batches 1"
        )


def batch_units(training: TrainingConfig, context: int) -> tuple[int, str]:
    """How many parts a batch has that no device splits, and what they are: tokens, or whole contexts."""
    batch = training.batch.batch_size
    if training.type.reads == "rows":
        return batch, "tokens"
    if batch % context:
        raise BadInput(
            f"--objective {training.objective} trains on whole contexts, and --batch-size {batch} is no "
            f"multiple of --context {context}: give one that is"
        )
    return batch // context, f"contexts of {context} tokens"


def check_division(sae: SAEConfig, training: TrainingConfig, context: int, data: int, latent: int):
    """Raises BadInput if the latents or a batch do not divide over so many devices."""
    n, (batch, unit), pieces = sae.n, batch_units(training, context), training.batch.micro_batches
    if n % latent:
        raise BadInput(
            f"--sae.n {n} does not divide over the {latent} devices of the mesh's latent axis: "
            f"give a multiple of {latent}, or another --mesh"
        )
    if batch % (data * pieces):
        in_pieces = f", in --micro-batches {pieces}" if pieces > 1 else ""
        of = "" if unit == "tokens" else f", {batch} {unit},"
        raise BadInput(
            f"--batch-size {training.batch.batch_size}{of} does not divide over the {data} devices of the mesh's data "
            f"axis{in_pieces}: give a multiple of {data * pieces} {unit}, or another --mesh"
        )
