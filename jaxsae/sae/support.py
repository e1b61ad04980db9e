"""Which latents each token may use on one shard, and the products with their rows. B tokens, d width, c slots.

`AllLatents` (all_latents.py) answers the same questions for a dense family, so that nothing else asks which it is. All
arguments are those of one shard, already varying over the mesh (`Layout.pvary`).
"""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxsae.sae import sparse


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Support:
    """The candidates of each token; those in use come first in each row."""

    pre: Any  # [B, c] their pre-activations, as the selection computed them
    indices: Any  # [B, c] int32, rows of the shard's weights
    mask: Any  # [B, c] which of them are in use
    # Whether `pre` is as good as the product in float32, so that it need not be computed again.
    exact: bool = field(default=True, metadata={"static": True})

    def selected_with(self, exact: bool) -> "Support":
        """The same, if its pre-activations come from a selection that is `exact` or not."""
        return replace(self, exact=self.exact and exact)

    def n_used(self):
        """The number of slots after which no token uses any."""
        return self.mask.sum(1, dtype=jnp.int32).max()

    def preactivations(self, W, b_enc, b_in, x):
        """<W[i], x - b_in> + b_enc[i], with gradient: W [n, d], b_enc [n], b_in [d], x [B, d] -> [B, c]."""
        known = self.pre if self.exact else None
        return sparse.preactivations(W, b_enc, b_in, self.indices, x, self.n_used(), known)

    def gather(self, a):
        """The numbers of a [n] that belong to each slot, [B, c]."""
        return a[self.indices]

    def keep(self, v):
        """v [B, c] with zeros in unused slots."""
        return jnp.where(self.mask, v, 0)

    def decode(self, W, v):
        """The rows of W [n, d] weighted by v [B, c] and summed, [B, d]."""
        return sparse.decode(W, v, self.indices, self.n_used())

    def count(self, active, zeros):
        """How often each latent is active [B, c] (of numbers: their sums), added to `zeros` [n]."""
        return zeros.at[self.indices].add(active.astype(zeros.dtype))

    def numbers(self, n: int):
        """The latent of each slot among the shard's n, [B, c] int32."""
        del n
        return self.indices
