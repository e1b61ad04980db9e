"""Which latents a token may use: the one dense product of a step, and its k largest. B tokens, d width, n latents.

The pre-activations [B, n] only choose, so they carry no gradient. If they take more memory than allowed, they are made
in blocks of latents (select_blocks.py).
"""

from dataclasses import dataclass
from functools import partial

import jax
from jax import lax

from jaxsae.precision import Precision, times_rows
from jaxsae.sae import activation_functions
from jaxsae.sae.activation_functions.interface import ShardView
from jaxsae.sae.decoder import KINDS, row_norms, section_norms
from jaxsae.sae.layout import UNSHARDED, Layout
from jaxsae.sae.select_blocks import largest_in_blocks
from jaxsae.sae.types import SAE, Spec

# Blocks are multiples of this many latents, which suits the tiles of every platform.
TILE = 128
# Tokens whose pre-activations are made at once on CPUs, where new memory is dear: the product of a batch would be
# mapped anew, page by page, in every step.
ROWS = 512


@dataclass(frozen=True)
class Selection:
    """How latents are chosen: precision of the product, and bytes per device that its result may take."""

    precision: Precision = "float32"
    memory: int = 1 << 30


EXACT = Selection()


def support(sae: SAE, x, layout: Layout = UNSHARDED, selection: Selection = EXACT, training: bool = False, k=None):
    """The Support (or AllLatents) of normalised x [B, d] among this shard's latents, without gradient.

    `k`: latents kept per token, traced, if they are fewer than the spec says.
    """
    sae, x = lax.stop_gradient((sae, x))

    lengths = norms(sae, layout)
    rank = ranks(sae.spec, lengths)

    def top(k: int, scale=1):
        W, b, centred = layout.pvary(sae.W_enc, sae.b_enc, x - sae.input_bias())
        scale = scale * rank
        W, b = (W, b) if isinstance(scale, int) else (W * scale[:, None], b * scale)
        return largest(W, b, centred, min(k, sae.n), selection)

    view = ShardView(sae.extra, lengths, sae.spec, layout, training, sae.spec.k if k is None else k)
    chosen = activation_functions.get(sae.spec.activation).support(top, view)
    # What competes in a crosscoder is not the pre-activations themselves.
    return chosen.selected_with(exact=selection.precision == "float32" and isinstance(rank, int))


def norms(sae: SAE, layout: Layout):
    """Norms of the decoder's rows [n] if they are free, else 1; of a crosscoder the sum of those of its sections."""
    kind, sections = KINDS[sae.spec.decoder], sae.spec.sections
    if sections == 1 and not kind.free:
        return 1
    (W,) = layout.pvary(sae.W_dec)
    return row_norms(W)[:, 0] if sections == 1 else section_norms(kind.as_used(W), sections).sum(1)


def ranks(spec: Spec, norms):
    """What a latent's value is multiplied by before it competes with others: 1, but for crosscoders, whose latents
    compete by all that they write (Minder et al. 2025).
    """
    return 1 if spec.sections == 1 else norms


def largest(W, b, x, k: int, selection: Selection):
    """The k largest of x W^T + b and their indices, both [B, k]: W [n, d], b [n], x [B, d].

    Equal values go to the lower index, as in `lax.top_k`.
    """
    n, tokens = len(b), len(x)
    block = max(TILE, selection.memory // (x.dtype.itemsize * tokens) // TILE * TILE)
    if block >= n:
        top = lambda x, W, b: lax.top_k(times_rows(x, W, selection.precision) + b, k)
        by_rows = top if tokens % ROWS else partial(_by_rows, top)
        return lax.platform_dependent(x, W, b, cpu=by_rows, default=top)
    return largest_in_blocks(W, b, x, k, block, selection.precision)


def _by_rows(top, x, W, b):
    """top(x, W, b), ROWS tokens after ROWS tokens."""
    parts = lax.map(lambda part: top(part, W, b), x.reshape(-1, ROWS, x.shape[1]))
    return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), parts)
