"""The finished autoencoder of a training state."""

from functools import partial

import jax

from jaxsae.sae.decoder import KINDS, unit_rows
from jaxsae.sae.types import SAE
from jaxsae.training.step import TrainState


@partial(jax.jit, static_argnames="decay")
def exported(state: TrainState, decay: float) -> SAE:
    """The finished autoencoder: EMA weights if EMA is on, decoder rows of norm 1 unless they are free."""
    return finished(state.params if state.ema is None else ema_weights(state.ema, state.step, decay))


def ema_weights(ema: SAE, step, decay: float) -> SAE:
    """The bias-corrected average after `step` updates."""
    return jax.tree.map(lambda e: e / (1 - decay**step), ema)


def finished(sae: SAE) -> SAE:
    """The autoencoder as it is exported: decoder rows have norm 1 unless they are free."""
    return sae if KINDS[sae.spec.decoder].free else sae.replace(W_dec=unit_rows(sae.W_dec))
