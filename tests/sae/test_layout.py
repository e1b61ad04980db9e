"""Exact top-k over shards, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from conftest import MESHES
from jaxsae.mesh import make_mesh
from jaxsae.sae.layout import ALONE, SHARDED


@pytest.mark.parametrize("levels", [1, 3, 1000], ids=["all tied", "many ties", "few ties"])
@pytest.mark.parametrize("k", [1, 5, 17, 64])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_top_k_of_shards_is_that_of_the_whole(mesh, k, levels):
    B, n = 16, 64
    z = jax.random.randint(jax.random.key(k), (B, n), 0, levels).astype(jnp.float32) - levels / 2

    def local(z):
        i, keep = SHARDED.top(z, k)
        kept = jnp.zeros(z.shape, bool).at[jnp.arange(len(z))[:, None], i].max(keep)
        return kept, SHARDED.threshold(-jnp.sort(-z)[:, : min(k, z.shape[1])], k) + 0 * z[:, :1]

    with jax.set_mesh(make_mesh(*mesh)):
        spec = P("data", "latent")
        kept, least = jax.jit(jax.shard_map(local, in_specs=spec, out_specs=(spec, spec)))(jax.reshard(z, spec))
    v, i = lax.top_k(z, k)
    want = np.zeros((B, n), bool)
    np.put_along_axis(want, np.asarray(i), True, 1)
    np.testing.assert_array_equal(kept, want)
    np.testing.assert_array_equal(least, np.broadcast_to(v.min(-1, keepdims=True), least.shape))


def test_alone_is_plain_top_k():
    z = jax.random.normal(jax.random.key(0), (4, 9))
    i, keep = ALONE.top(z, 3)
    assert keep.all()
    np.testing.assert_array_equal(i, lax.top_k(z, 3)[1])
    assert ALONE.threshold(z[:, :2], 3).tolist() == [[-jnp.inf]] * 4
