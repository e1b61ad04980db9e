"""What an activation function is to the rest of the package: a record of pure functions."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Activation:
    """B tokens, n latents of this shard, c slots of a code.

    init(key, n)                    the activation function's own arrays, each with a leading latent axis
    support(z, extra, spec, layout) which latents may be active: indices [B, c] and a mask [B, c], from the
                                    pre-activations z [B, n], which carry no gradient
    value(p, spec)                  values [B, c] of the pre-activations p [B, c] at the support; differentiable
    """

    init: Callable
    support: Callable
    value: Callable
