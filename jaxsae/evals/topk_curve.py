"""How few latents carry the agreement of subject and verb (Braun et al. 2024, app. I, fig. 24).

P prefixes, T positions, R rows, d width, A active latents, S slots; the letters of agreement.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsae.errors import BadInput
from jaxsae.evals import latents
from jaxsae.evals.pairs import Pairs
from jaxsae.evals.readout import answers, everywhere, mean_number, readout_of, split, stream_at, weights_of
from jaxsae.evals.subject import by_tokens, reconstruct
from jaxsae.lm.model import LM
from jaxsae.sae.layout import REPLICATED
from jaxsae.sae.types import SAE

# How many latents the paper's curve keeps.
KS = (*range(100), *range(100, 500, 5))
# Tokens of a device that are run at once if latents are ablated one by one (CPUs are slower at more).
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Curve:
    """m with all but the `ks` most important latents ablated."""

    m_model: float
    m_sae: float  # nothing ablated
    latents: np.ndarray  # [A] those active in any slot, the most important first
    effects: np.ndarray  # [A] |m_sae - m without this latent|
    ks: np.ndarray  # [K]
    m: np.ndarray  # [K]

    @property
    def faithfulness(self) -> np.ndarray:
        """[K]: m / m_model."""
        return self.m / self.m_model


def topk_curve(
    lm: LM, sae: SAE, hook: str, pairs: Pairs, ks: Sequence[int] = KS, tokens_at_once: int = TOKENS_AT_ONCE
) -> Curve:
    """How few latents carry m, with the autoencoder at residual `hook` (app. I, fig. 24).

    A latent is ablated by giving it, on every token of a slot, its mean over the tokens of that slot in all rows; end
    of text is left as it is. Its effect is how far that moves m. Then all but the k latents of the largest effects are
    ablated together (with k = 0, what Marks et al. 2024 call the empty circuit). The rows are of one template. Latents
    that are active outside the slots alone have no effect, and are not counted; nor are tokens without reconstruction.
    """
    if len({*np.max(pairs.slots, 1)}) > 1:
        raise BadInput("prefixes have different numbers of words: give the rows of one template")
    n_slots, pairs = int(np.max(pairs.slots)) + 1, split(_only_kept(pairs))
    active = np.flatnonzero(np.asarray(_counts(lm, sae, pairs, hook)))
    xhat, deviations, m_model, m_sae = _deviations(lm, sae, pairs, active, hook, n_slots)
    W = sae.as_used().W_dec.at[active].get(out_sharding=REPLICATED)
    each = _ablated_one_by_one(lm, xhat, deviations, W, pairs, hook, tokens_at_once)
    effects = np.abs(np.asarray(each) - np.asarray(m_sae))
    order = np.argsort(-effects, stable=True)
    ks = np.asarray(ks, np.int32)
    m = _all_but(lm, xhat, deviations[:, order], W[order], ks, pairs, hook)
    return Curve(float(m_model), float(m_sae), active[order], effects[order], ks, np.asarray(m))


def _only_kept(pairs: Pairs) -> Pairs:
    """The same rows; a token where no reconstruction is put in belongs to no slot."""
    return pairs if pairs.kept is None else replace(pairs, slots=np.where(pairs.kept, pairs.slots, -1))


@partial(jax.jit, static_argnames="hook")
def _counts(lm, sae, pairs, hook):
    """On how many tokens in slots each latent is active: [n]."""
    x = by_tokens(lambda x: x, stream_at(lm, pairs, hook))
    inside = jnp.asarray(pairs.slots).reshape(-1) >= 0
    return jax.reshard(latents.counts(sae, x.reshape(-1, x.shape[-1]), inside), REPLICATED)


@partial(jax.jit, static_argnames=("hook", "n_slots"))
def _deviations(lm, sae, pairs, active, hook, n_slots):
    """Reconstruction [P, T, d]; what ablation adds to each latent at each token, in units of the stream, [P, A, T];
    m of the model and with the reconstruction.

    An ablated latent changes the reconstruction by this number times its row of the decoder.
    """
    x = stream_at(lm, pairs, hook)
    xhat = reconstruct(sae, x, kept=pairs.kept)
    both = by_tokens(lambda x: latents.columns(sae, x, active), x)
    values, scale = (jax.reshard(a, REPLICATED) for a in both)
    inside = jax.nn.one_hot(pairs.slots, n_slots, dtype=x.dtype)  # [P, T, S], zeros outside of slots
    # A mean over rows: each prefix counts as often as it occurs.
    times = jnp.bincount(pairs.row, length=len(x)).astype(x.dtype)
    weighted = inside * times[:, None, None]
    means = jnp.einsum("pts,pta->sa", weighted, values, precision="highest")
    # A slot may have no token left.
    means /= jnp.maximum(weighted.sum((0, 1)), 1)[:, None]
    expected = jnp.einsum("pts,sa->pta", inside, means, precision="highest")
    added = (expected - inside.sum(-1, keepdims=True) * values) * scale[..., None]
    readout = readout_of(lm, pairs, x.dtype)
    m_model, m_sae = (mean_number(lm, readout, stream, pairs, hook) for stream in (x, xhat))
    return xhat, added.swapaxes(1, 2), m_model, m_sae


@partial(jax.jit, static_argnames=("hook", "tokens_at_once"))
def _ablated_one_by_one(lm, xhat, deviations, W, pairs, hook, tokens_at_once):
    """m without each latent: [A]. Only the layers after the hook are run again."""

    def local(model, xhat, deviations, last, weights):
        *model, W = model

        def share(part):
            added, row = part
            return (answers(*model, xhat + added[..., None] * row, last, hook) * weights).sum(-1)

        at_once = max(1, tokens_at_once // (xhat.shape[0] * xhat.shape[1]))
        return lax.map(share, (deviations.swapaxes(0, 1), W), batch_size=at_once).swapaxes(0, 1)

    model = lm, readout_of(lm, pairs, xhat.dtype), W
    return everywhere(local, model, xhat, deviations, pairs.last, weights_of(pairs, xhat.dtype)).sum(0)


@partial(jax.jit, static_argnames="hook")
def _all_but(lm, xhat, deviations, W, ks, pairs, hook):
    """m without all but the first k latents, for each of ks: [K]."""

    def local(model, xhat, deviations, last, weights):
        *model, W, ks = model

        def share(k):
            kept = jnp.where(jnp.arange(len(W)) >= k, 1, 0).astype(W.dtype)
            changed = jnp.einsum("pat,ad->ptd", deviations, kept[:, None] * W, precision="highest")
            return (answers(*model, xhat + changed, last, hook) * weights).sum(-1)

        return lax.map(share, ks).swapaxes(0, 1)

    model = lm, readout_of(lm, pairs, xhat.dtype), W, ks
    return everywhere(local, model, xhat, deviations, pairs.last, weights_of(pairs, xhat.dtype)).sum(0)
