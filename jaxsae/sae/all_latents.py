"""The support of a dense family: a slot for every latent. B tokens, d width, n latents of a shard."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxsae.precision import matmul


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AllLatents:
    """Every latent of every token. The methods are those of `Support`, with c = n."""

    def selected_with(self, exact: bool) -> "AllLatents":
        del exact
        return self

    def preactivations(self, W, b_enc, b_in, x):
        # x carries no gradient of its own here, and that of b_in is a matrix-vector product.
        return matmul(x, W.T) + (b_enc - matmul(W, b_in))

    def gather(self, a):
        return a

    def keep(self, v):
        return v

    def decode(self, W, v):
        return matmul(v, W)

    def count(self, active, zeros):
        return zeros + active.sum(0, dtype=zeros.dtype)

    def numbers(self, n: int):
        return jnp.arange(n, dtype=jnp.int32)
