"""The forward pass on one shard, in normalised units. B tokens, d width, n latents, c slots of a code.

Training and evaluation call it inside shard_map; `layout` says of which shard.
"""

from jaxsae.precision import matmul
from jaxsae.sae import activation_functions
from jaxsae.sae.activation_functions.interface import Preacts
from jaxsae.sae.activation_functions.options import Options
from jaxsae.sae.layout import UNSHARDED, Layout
from jaxsae.sae.select import norms
from jaxsae.sae.types import SAE


def preacts_of(sae: SAE, x, support, layout: Layout = UNSHARDED) -> Preacts:
    """Pre-activations of normalised x [B, d], with gradient, and what belongs to their latents, on this shard."""
    W, b, b_in, x, support, extra = layout.pvary(sae.W_enc, sae.b_enc, sae.input_bias(), x, support, sae.extra)
    gathered = {name: support.gather(a) for name, a in extra.items()}
    weights = norms(sae, layout)
    weights = weights if isinstance(weights, int) else support.gather(weights)
    return Preacts(support.preactivations(W, b, b_in, x), support.gather(b), gathered, weights)


def values_of(sae: SAE, preacts: Preacts, support, options: Options | None = None):
    """Values [B, c] of a code; zero in unused slots."""
    options = activation_functions.default_options(sae.spec.activation) if options is None else options
    return support.keep(activation_functions.get(sae.spec.activation).value(preacts, options))


def skip_of(sae: SAE, x):
    """What the skip connection of a skip transcoder makes of normalised x [B, d]: [B, d_out]; None without one."""
    return None if sae.W_skip is None else matmul(x, sae.W_skip)


def reconstruct(sae: SAE, v, support, layout: Layout = UNSHARDED, skip=None):
    """Normalised reconstruction [B, d] of values [B, c] of this shard's latents; `skip` (see `skip_of`) is added."""
    W, v, support = layout.pvary(sae.W_dec, v, support)
    xhat = layout.sum_latents(support.decode(W, v)) + sae.b_dec
    return xhat if skip is None else xhat + skip
