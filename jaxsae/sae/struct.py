"""The autoencoder as a pytree of arrays. d width of the input, n latents."""

from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

import jax

from jaxsae.errors import BadInput
from jaxsae.sae import activations
from jaxsae.sae.layout import EVERYWHERE, LATENTS

Normalise = Literal["unit_norm", "ln_std", "none"]
Decoder = Literal["unit_norm", "free", "normalised"]


@dataclass(frozen=True)
class Spec:
    """The mathematics of an autoencoder: hashable, saved with it, never guessed on load."""

    activation: str
    """Name in `jaxsae.sae.activations.REGISTRY`."""
    k: int
    """Latents kept per token."""
    normalise: Normalise
    """What happens to each token first: see normalise.py."""
    decoder: Decoder
    """`unit_norm`: rows of W_dec are kept at norm 1 in training. `free`: they are not. `normalised`: whatever their
    norms, they are divided by them wherever they are used (Braun et al. 2024)."""
    subtract_b_dec: bool
    """Whether the encoder sees x - b_dec or x."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: numbers of first latents that reconstruct by themselves too, in training; the last is n."""

    def __post_init__(self):
        activations.get(self.activation)
        for name, allowed in (("normalise", Normalise), ("decoder", Decoder)):
            if getattr(self, name) not in allowed.__args__:
                raise BadInput(f"unknown {name} {getattr(self, name)!r}: allowed are {', '.join(allowed.__args__)}")

    def replace(self, **changes) -> "Spec":
        return replace(self, **changes)

    def unlike(self, asked: "Spec") -> list[str]:
        """Where it is not what was asked for, as `k 4, not 5`."""
        pairs = {f.name: (getattr(self, f.name), getattr(asked, f.name)) for f in fields(self)}
        return [f"{name} {have}, not {want}" for name, (have, want) in pairs.items() if have != want]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["W_enc", "b_enc", "W_dec", "b_dec", "extra"],
    meta_fields=["spec"],
)
@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder. The same class holds PartitionSpecs, shardings, gradients and optimizer moments."""

    W_enc: Any  # [n, d]
    b_enc: Any  # [n]
    W_dec: Any  # [n, d], row i is what latent i writes
    b_dec: Any  # [d], subtracted before the encoder (if the spec says so) and added by the decoder
    spec: Spec
    extra: dict = field(default_factory=dict)  # the activation function's own arrays

    @property
    def n(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d(self) -> int:
        return self.W_enc.shape[1]

    def replace(self, **changes) -> "SAE":
        return replace(self, **changes)


def partition_specs(sae: SAE) -> SAE:
    """How each array of `sae` lies on a mesh: latents over `latent`, b_dec everywhere."""
    return SAE(LATENTS, LATENTS, LATENTS, EVERYWHERE, sae.spec, jax.tree.map(lambda _: LATENTS, sae.extra))


@partial(jax.tree_util.register_dataclass, data_fields=["values", "indices", "mean", "scale"], meta_fields=[])
@dataclass(frozen=True)
class Code:
    """What `encode` returns for tokens [..., d]; unused slots have value 0 and index 0."""

    values: Any  # [..., c]
    indices: Any  # [..., c] int32
    mean: Any  # [...], subtracted from each token
    scale: Any  # [...], by which each token was divided
