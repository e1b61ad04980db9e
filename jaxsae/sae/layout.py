"""How an autoencoder lies on devices: every collective of the package's mathematics is in this file.

Tokens are split over the mesh axis `data`, latents over `latent`. Inside shard_map a `Layout` knows both axes; on one
device (or outside any mesh) UNSHARDED has neither, and every method is an identity or its plain equivalent.

Over `latent` move only the k S candidates of a top-k, sums of [B, d], and scalars; over `data` only gradients,
counters and sums over tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.precision import varying

DATA, LATENT = "data", "latent"
TOKENS = P(DATA)  # anything with a leading token axis
LATENTS = P(LATENT)  # anything with a leading latent axis
REPLICATED = P()


@dataclass(frozen=True)
class Layout:
    data: str | None = None
    latent: str | None = None

    def pvary(self, *arrays):
        """The same arrays, typed as varying over both mesh axes; the gradient sums over what they did not vary on."""
        axes = {axis for axis in (self.data, self.latent) if axis}
        cast = lambda a: lax.pcast(a, tuple(axes - varying(a)), to="varying") if axes - varying(a) else a
        return tuple(jax.tree.map(cast, a) for a in arrays)

    def sum_latents(self, x):
        """Sum over the shards of the latents, the same on all of them."""
        return lax.psum(x, self.latent) if self.latent else x

    def sum_tokens(self, x):
        """Sum over the shards of the tokens."""
        return lax.psum(x, self.data) if self.data else x

    def min_all(self, x):
        """The smallest of x over all shards of tokens and latents, [] -> []."""
        axes = tuple(axis for axis in (self.data, self.latent) if axis)
        return lax.pmin(x, axes) if axes else x

    def latent_offset(self, n: int):
        """The number of this shard's first latent, with n latents a shard."""
        return lax.axis_index(self.latent) * n if self.latent else 0

    def shards(self) -> int:
        """The number of shards of the latents."""
        return lax.axis_size(self.latent) if self.latent else 1

    def topk_mask(self, v, k, most: int | None = None):
        """Mask [B, c] of this shard's candidates v (sorted, descending) that are among the k largest of all shards.

        A traced k has a static bound, `most`.
        """
        if not self.latent:
            return jnp.arange(v.shape[-1]) < k + jnp.zeros_like(v, jnp.int32)
        c = v.shape[-1]
        everyone = lax.all_gather(v, self.latent, axis=1, tiled=True)
        if most is None and everyone.shape[-1] <= k:
            return jnp.ones_like(v, bool)
        largest = lax.top_k(everyone, k if most is None else min(most, everyone.shape[-1]))[0]
        if most is not None:
            largest = jnp.where(jnp.arange(largest.shape[-1]) < k, largest, jnp.inf)
        # .min, because XLA:CPU would sort whole rows for a slice of top_k's result.
        kth = largest.min(-1, keepdims=True)
        above, equal = everyone > kth, everyone == kth
        # Shards come in the order of their latents and each one's candidates in the order of ties.
        room = k - above.sum(-1, keepdims=True)
        keep = above | (equal & (jnp.cumsum(equal, -1) <= room))
        return lax.dynamic_slice_in_dim(keep, lax.axis_index(self.latent) * c, c, axis=1)


UNSHARDED = Layout()
