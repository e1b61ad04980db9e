"""Resampling: dead latents start again from tokens that are reconstructed badly (Bricken et al. 2023, "Neuron
Resampling"). Gao et al. 2024, app. B.2, give it to their ReLU baselines in place of AuxK.

B tokens, d width, n latents. Every dead latent gets a token of its own, drawn with probability proportional to the
square of the token's loss, the loss being the squared error. The direction of the token becomes the decoder's row and,
shorter, the encoder's; what the optimizer and the average knew of the latent is forgotten.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.sae import activation_functions
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.decoder import KINDS, row_norms, unit_rows
from jaxsae.sae.layout import LATENTS, REPLICATED
from jaxsae.sae.select import EXACT, Selection
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig
from jaxsae.training.micro_batches import join, prepare
from jaxsae.training.objectives import Objective
from jaxsae.training.records import Hyper
from jaxsae.training.step import TrainState

# Of the mean norm of living encoder rows: a new latent is active little at first, so that it disturbs little.
SCALE = 0.2


def resample(state: TrainState, logits, directions, dead_window, ema_decay, own) -> TrainState:
    """`state` with new rows for latents idle for `dead_window` tokens, from the `candidates` of a batch.

    The draw follows from the key and the step of the state, and is the same on every mesh. Where more latents are dead
    than there are tokens to draw, the rest stay dead until the next time: twins would get equal gradients forever.
    """
    dead = state.idle >= dead_window
    everywhere = lambda a: jax.reshard(a, REPLICATED)
    # Latents of any shard may get tokens of any other: [B, d] of one batch goes to every device, and [B] and [n] of
    # numbers, from which all devices draw the same.
    logits, directions = everywhere(logits), everywhere(directions)
    key = jax.random.fold_in(state.key, state.step)
    fresh, token = (jax.reshard(a, LATENTS) for a in draw(key, logits, everywhere(dead)))
    rows = directions.at[token].get(out_sharding=P(*LATENTS, None))
    return revive(state, dead, fresh, rows, ema_decay, own)


def make_resample(sae: SAEConfig, training: TrainingConfig, objective: Objective) -> Callable:
    """A function (state, batch, hyper, lm) -> state for the batches of a step, in as many micro-batches."""
    micro = training.batch.micro_batches

    def run(state: TrainState, batch, hyper: Hyper, lm=None) -> TrainState:
        prepared = objective.prepare(batch, lm) if micro == 1 else prepare(objective, micro, batch, lm)
        of_part = lambda part: candidates(state.params, part.x, sae.selection(), hyper.k)
        drawn_from = of_part(prepared) if micro == 1 else join(lax.map(of_part, prepared))
        return resample(state, *drawn_from, hyper.dead_window, training.ema_decay(), sae.options().own)

    return run


def candidates(sae: SAE, x, selection: Selection = EXACT, k=None):
    """Log of the probability, up to a constant, that a token is drawn [B@data], and unit vectors [B@data, d]."""
    options = activation_functions.default_options(sae.spec.activation)
    xhat = autoencode(sae, x, choose(sae, x, selection, training=True, k=k), options).xhat
    loss = ((x - xhat) ** 2).sum(1)
    directions = unit_rows(x - sae.input_bias())
    # A token without a direction is of no use.
    return jnp.where(jnp.any(directions != 0, 1), 2 * jnp.log(loss), -jnp.inf), directions


def draw(key, logits, dead):
    """Which of the dead latents [n] get a token, and which one, by logits [B] and without putting any back."""
    # Sorting by perturbed logits draws one after the other (Gumbel top-k).
    order = jnp.argsort(-(logits + jax.random.gumbel(key, logits.shape, logits.dtype)))
    turn = jnp.cumsum(dead) - 1
    token = order[jnp.clip(turn, 0, len(order) - 1)]
    return dead & (turn < len(order)) & (logits[token] > -jnp.inf), token


def revive(state: TrainState, dead, fresh, rows, ema_decay, own) -> TrainState:
    """`state` with latents marked `fresh`, some of the `dead`, made anew from unit vectors `rows` [n@latent, d]."""
    sae = state.params
    # The rows of a decoder that is normalised where it is used have any length, and Adam, whose steps have the same
    # size for all, would turn short ones faster than the others.
    kind = KINDS[sae.spec.decoder]
    length = 1 if kind.constrained or kind.free else _typical(sae.W_dec, ~dead)
    new = {
        "W_enc": SCALE * _typical(sae.W_enc, ~dead) * rows,
        "b_enc": jnp.zeros_like(sae.b_enc),
        "W_dec": length * rows,
    }
    act = activation_functions.get(sae.spec.activation)
    # A latent that died of its threshold would stay dead. What training estimates is not of one latent alone.
    if act.update_extra is None:
        extra = act.init(jax.random.fold_in(state.key, state.step), sae.n, sae.b_enc.dtype, own)
        new["extra"] = jax.tree.map(lambda a: jax.reshard(a, LATENTS), extra)

    def forget(part):
        if not isinstance(part, optax.ScaleByAdamState):
            return part
        return part._replace(**{name: _zero(getattr(part, name), fresh) for name in ("mu", "nu")})

    is_adam = lambda part: isinstance(part, optax.ScaleByAdamState)
    return replace(
        state,
        params=_put(sae, fresh, new),
        opt=jax.tree.map(forget, state.opt, is_leaf=is_adam),
        ema=None if state.ema is None else _put(state.ema, fresh, _uncorrected(new, state.step, ema_decay)),
        idle=jnp.where(fresh, 0, state.idle),
    )


def _typical(W, living):
    """The mean norm of the living rows of W [n@latent, d]; 1 if there are none."""
    norms = jnp.where(living, row_norms(W)[:, 0], 0)
    return jnp.where(living.any(), norms.sum() / jnp.maximum(living.sum(), 1), 1)


def _put(sae: SAE, fresh, new: dict) -> SAE:
    """The fresh rows of `sae` from `new`."""
    put = lambda a, old: jnp.where(fresh.reshape(-1, *(1,) * (a.ndim - 1)), a, old)
    return sae.replace(**{name: jax.tree.map(put, a, getattr(sae, name)) for name, a in new.items()})


def _zero(moments: SAE, fresh) -> SAE:
    rows = {name: getattr(moments, name) for name in ("W_enc", "b_enc", "W_dec", "extra")}
    return _put(moments, fresh, jax.tree.map(jnp.zeros_like, rows))


def _uncorrected(new: dict, step, decay) -> dict:
    """What the average must hold so that, corrected for its start from zeros, it is `new`."""
    return jax.tree.map(lambda a: a * (1 - decay**step), new)
