"""The configuration of an autoencoder; each field is a flag, `--sae.FLAG`."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxsae.errors import BadInput
from jaxsae.flags import FLAT, NoFlags
from jaxsae.precision import Precision
from jaxsae.sae import activation_functions
from jaxsae.sae.activation_functions.options import Options, Penalty, SparsityConfig
from jaxsae.sae.decoder import Decoder
from jaxsae.sae.init import Init
from jaxsae.sae.normalise import Normalise
from jaxsae.sae.select import Selection
from jaxsae.sae.types import Spec


@dataclass(frozen=True)
class SAEConfig:
    n: int = 4096
    """Number of latents."""
    k: int = 32
    """Latents kept per token."""
    activation: Literal[tuple(activation_functions.REGISTRY)] = "topk"
    """Activation function."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: numbers of first latents that must reconstruct by themselves too; the last is --sae.n."""
    init: Init = "tied"
    """First weights: tied, the encoder parallel to a random decoder (Gao et al. 2024; of a transcoder, the decoder
    along what varies with a random encoder), or orthogonal, PyTorch's default encoder and a tight frame as decoder
    (Braun et al. 2024)."""
    normalise: Normalise = "unit_norm"
    """Per-token normalisation, saved with the autoencoder: unit_norm as in Gao et al. 2024, ln_std as in their code. Of
    a crosscoder each section by itself; a transcoder's output is divided by one number instead."""
    decoder: Decoder = "unit_norm"
    """Keep decoder rows at norm 1 (projected gradient, renormalised after each step), leave them free, or divide them
    by their norms wherever they are used."""
    subtract_b_dec: bool = True
    """Subtract the decoder's bias from the input of the encoder; in a transcoder, a bias of the input's own."""
    skip: bool = False
    """With --hook-out: a skip transcoder, which adds a linear map of its input to its output (Paulo et al. 2025)."""
    crosscoder: bool = False
    """Of several --hook names, one code for all (Lindsey et al. 2024): the activations side by side, each section with
    norms of its own; latents compete, and are penalised, by the sum of the norms of a decoder row's sections."""
    sections: int = 1
    """With --activations: sections of the activations, which files hold side by side. With --sae.crosscoder there is
    one for each --hook."""
    select_precision: Precision = "float32"
    """Precision of the product that chooses latents; values and gradients are exact whatever it is."""
    select_memory: float = 1.0
    """Gigabytes per device that the pre-activations of all latents may take; beyond it they are made in blocks."""
    sparsity: Annotated[SparsityConfig, FLAT] = field(default_factory=SparsityConfig)
    families: Annotated[activation_functions.FamilyConfigs, FLAT] = field(
        default_factory=activation_functions.FamilyConfigs
    )

    def __post_init__(self):
        if self.n < 1:
            raise BadInput(f"--sae.n is {self.n}: give at least 1 latent")
        if not 1 <= self.k <= self.n:
            raise BadInput(f"--sae.k is {self.k}: allowed is 1 to --sae.n, which is {self.n}")
        if self.sections < 1:
            raise BadInput(f"--sae.sections is {self.sections}: give at least 1")
        if not 0 < self.select_memory < math.inf:
            raise BadInput(f"--sae.select-memory is {self.select_memory}: give a positive number of gigabytes")
        if list(self.prefixes) != sorted({m for m in self.prefixes if 0 < m <= self.n}) or (
            self.prefixes and self.prefixes[-1] != self.n
        ):
            raise BadInput(f"--sae.prefixes {self.prefixes}: give rising numbers, the last one --sae.n, {self.n}")
        self._check_sparsity()

    def _check_sparsity(self):
        penalties, sparsity = activation_functions.get(self.activation).penalties, self.sparsity
        if sparsity.penalty and sparsity.penalty not in penalties:
            allowed = ", ".join(penalties) or "none"
            raise BadInput(f"--sae.penalty is {sparsity.penalty}: {self.activation} allows {allowed}")
        if sparsity.exponent != 1 and sparsity.penalty != "lp":
            raise BadInput(
                f"--sae.exponent is {sparsity.exponent}: it is of --sae.penalty lp, give that too or leave it out"
            )
        if not 0 < sparsity.exponent <= 1 or not 0 < sparsity.tanh_scale < math.inf:
            raise BadInput(
                f"--sae.exponent is {sparsity.exponent}, --sae.tanh-scale {sparsity.tanh_scale}: give an exponent "
                "above 0 up to 1, and a positive scale"
            )
        if sparsity.target_l0 is None:
            return
        if not any(penalty.steers for penalty in penalties.values()):
            steered = [
                name
                for name, family in activation_functions.REGISTRY.items()
                if any(penalty.steers for penalty in family.penalties.values())
            ]
            raise BadInput(
                f"--sae.target-l0 is given: {self.activation} has no penalty l0 that steers, {', '.join(steered)} has"
            )
        if not self.penalty.steers:
            raise BadInput(f"--sae.target-l0 is given: it steers --sae.penalty l0, not {sparsity.penalty}")
        if not 0 < sparsity.target_l0 <= self.n:
            raise BadInput(f"--sae.target-l0 is {sparsity.target_l0}: allowed is above 0 to --sae.n, which is {self.n}")

    @property
    def penalty(self) -> Penalty | None:
        """The sparsity term; None if the family has none."""
        penalties = activation_functions.get(self.activation).penalties
        return penalties[self.sparsity.penalty or next(iter(penalties))] if penalties else None

    def options(self) -> Options:
        """What the activation function is trained with."""
        return Options(self.sparsity, getattr(self.families, self.activation, NoFlags()))

    def selection(self) -> Selection:
        """How latents are chosen."""
        return Selection(self.select_precision, int(self.select_memory * 1e9))

    def spec(self) -> Spec:
        """The mathematics of the autoencoder, as saved with it."""
        prefixes = tuple(self.prefixes)
        return Spec(self.activation, self.k, self.normalise, self.decoder, self.subtract_b_dec, prefixes, self.sections)
