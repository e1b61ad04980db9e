"""Exact top-k over shards, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.distributed.mesh import make_mesh
from jaxsae.sae.layout import DATA, LATENT, UNSHARDED, Layout
from tests.conftest import MESHES


@pytest.mark.parametrize("k", [1, 5, 17, 64])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_top_k_of_shards_is_that_of_the_whole(mesh, k):
    B, n = 16, 64

    def local(z):
        v, i = lax.top_k(z, min(k, z.shape[1]))
        keep = Layout(DATA, LATENT).topk_mask(v, k)
        # Those kept come first, so that the sparse products may stop after them.
        ordered = (jnp.diff(keep.astype(jnp.int32), axis=1) <= 0).all(1, keepdims=True)
        return jnp.zeros(z.shape, bool).at[jnp.arange(len(z))[:, None], i].max(keep), ordered

    with jax.set_mesh(make_mesh(*mesh)):
        spec = P("data", "latent")
        run = jax.jit(jax.shard_map(local, in_specs=spec, out_specs=(spec, spec)))
        # All tied, many ties, few ties.
        for levels in (1, 3, 1000):
            z = jax.random.randint(jax.random.key(k), (B, n), 0, levels).astype(jnp.float32) - levels / 2
            kept, ordered = run(jax.reshard(z, spec))
            want = np.zeros((B, n), bool)
            np.put_along_axis(want, np.asarray(lax.top_k(z, k)[1]), True, 1)
            np.testing.assert_array_equal(kept, want, err_msg=f"{levels} levels")
            assert ordered.all()


def test_alone_keeps_every_candidate():
    assert UNSHARDED.topk_mask(jnp.zeros((4, 3)), 3).all()
    assert UNSHARDED.topk_mask(jnp.zeros((4, 3)), 2).sum(1).tolist() == [2] * 4
