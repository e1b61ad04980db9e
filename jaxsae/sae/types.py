"""The autoencoder as a pytree of arrays. d width of the input (d_in) and of the output (d_out), n latents.

A transcoder is one whose output is another activation than its input; a crosscoder one whose input and output are
several activations side by side, its sections.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.errors import BadInput
from jaxsae.sae import activation_functions
from jaxsae.sae.decoder import KINDS, Decoder
from jaxsae.sae.layout import LATENTS, REPLICATED
from jaxsae.sae.normalise import Normalise


@dataclass(frozen=True)
class Spec:
    """The mathematics of an autoencoder: hashable, saved with it, never guessed on load."""

    activation: str
    """Name in `jaxsae.sae.activation_functions.REGISTRY`."""
    k: int
    """Latents kept per token."""
    normalise: Normalise
    """What happens to each token first: see normalise.py."""
    decoder: Decoder
    """What holds the rows of W_dec: see decoder.py."""
    subtract_b_dec: bool
    """Whether the encoder sees x - b_dec or x."""
    prefixes: tuple[int, ...] = ()
    """Matryoshka: numbers of first latents that reconstruct by themselves too, in training; the last is n."""
    sections: int = 1
    """Of a crosscoder: how many activations of one width the input holds, side by side."""

    def __post_init__(self):
        activation_functions.get(self.activation)
        for name, allowed in (("normalise", Normalise.__args__), ("decoder", tuple(KINDS))):
            if getattr(self, name) not in allowed:
                raise BadInput(f"unknown {name} {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if not isinstance(self.sections, int) or self.sections < 1:
            raise BadInput(f"sections is {self.sections!r}: give a whole number of at least 1")

    def replace(self, **changes) -> "Spec":
        return replace(self, **changes)

    def differences(self, asked: "Spec") -> list[str]:
        """What differs from `asked`, each as `k 4, not 5`."""
        pairs = {f.name: (getattr(self, f.name), getattr(asked, f.name)) for f in fields(self)}
        return [f"{name} {have}, not {want}" for name, (have, want) in pairs.items() if have != want]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder. The same class holds PartitionSpecs, shardings, gradients and optimizer moments."""

    W_enc: Any  # [n, d_in]
    b_enc: Any  # [n]
    W_dec: Any  # [n, d_out], row i is what latent i writes
    b_dec: Any  # [d_out], added by the decoder, and subtracted before the encoder if the spec says so
    spec: Spec = field(metadata={"static": True})
    extra: dict = field(default_factory=dict)  # the activation function's own arrays
    b_in: Any = None  # [d_in], subtracted before the encoder in place of b_dec; None for autoencoders
    W_skip: Any = None  # [d_in, d_out], of a skip transcoder: x W_skip is added to the output
    scale_out: Any = None  # [1], of a transcoder: the unit of its output, in that of the language model

    @property
    def n(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d(self) -> int:
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    def input_bias(self):
        """What is subtracted from the input before the encoder, [d_in]."""
        if self.b_in is not None:
            return self.b_in
        return self.b_dec if self.spec.subtract_b_dec else jnp.zeros_like(self.b_dec, shape=(self.d,))

    def replace(self, **changes) -> "SAE":
        return replace(self, **changes)

    def as_used(self) -> "SAE":
        """The autoencoder with the decoder rows that it computes with."""
        return self.replace(W_dec=KINDS[self.spec.decoder].as_used(self.W_dec))


def partition_specs(sae: SAE) -> SAE:
    """How each array of `sae` lies on a mesh: latents over `latent`, what has no latents everywhere."""
    replicated = [None if a is None else REPLICATED for a in (sae.b_in, sae.W_skip, sae.scale_out)]
    extra = jax.tree.map(lambda _: LATENTS, sae.extra)
    return SAE(LATENTS, LATENTS, LATENTS, REPLICATED, sae.spec, extra, *replicated)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Code:
    """What `encode` returns for tokens [..., d]; unused slots have value 0 and index 0."""

    values: Any  # [..., c]
    indices: Any  # [..., c] int32
    mean: Any  # [...] (of a crosscoder [..., sections]): what the decoder adds to each token of its output
    scale: Any  # like mean: what it multiplies each token of its output by
    skip: Any = None  # [..., d_out], of a skip transcoder: what the skip connection adds to the normalised output
