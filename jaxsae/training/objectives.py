"""What the reconstruction is held against. B tokens, d width.

An objective takes the reconstruction, the target and the normalisation of the loss, and returns a scalar and metrics.
It knows no code and no mesh: its arrays are global.
"""

from collections.abc import Callable

import jax.numpy as jnp

from jaxsae.errors import BadInput


def local(xhat, y, mse_scale):
    """Squared error over B and d times `mse_scale` (Gao et al. 2024, app. A.6): about 1 for predicting the mean."""
    loss = mse_scale * jnp.mean((xhat - y) ** 2)
    return loss, {"reconstruction": loss}


REGISTRY: dict[str, Callable] = {"local": local}


def get(name: str) -> Callable:
    if name not in REGISTRY:
        raise BadInput(f"unknown objective {name!r}: allowed are {', '.join(REGISTRY)}")
    return REGISTRY[name]
