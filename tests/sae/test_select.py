"""The choice of latents in blocks is the choice in one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsae.sae import select
from jaxsae.sae.select import Selection, largest


def problem(ties):
    n, d, tokens = 1000, 6, 40
    a, b, c = jax.random.split(jax.random.key(0), 3)
    W, x = jax.random.normal(a, (n, d)), jax.random.normal(b, (tokens, d))
    if ties == "many":
        W, x = jnp.round(W), jnp.round(x)
    return W * (ties != "all"), jnp.round(jax.random.normal(c, (n,))), x


@pytest.mark.parametrize("k", [1, 7, 300, 1000])
@pytest.mark.parametrize("tile, memory", [(128, 1), (1, 40 * 4 * 333), (8, 40 * 4 * 999)], ids=str)
def test_blocks_do_not_show(monkeypatch, tile, memory, k):
    monkeypatch.setattr(select, "TILE", tile)
    run = jax.jit(lambda *a: largest(*a, k, Selection(memory=memory)))
    for ties in ("few", "many", "all"):
        W, b, x = problem(ties)
        v, i = run(W, b, x)
        # Small integers, so that every product is exact whatever its order; else values may differ in the last place.
        want_v, want_i = lax.top_k(jnp.matmul(x, W.T, precision="highest") + b, k)
        np.testing.assert_array_equal(i, want_i, err_msg=f"{ties} ties")
        np.testing.assert_allclose(v, want_v, atol=1e-5)


def test_no_block_has_all_latents():
    n, d, tokens, k = 4096, 6, 40, 5
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (n,), (tokens, d))]
    run = lambda memory: jax.jit(lambda *a: largest(*a, k, Selection(memory=memory))).lower(*shapes).compile()
    assert f"[{tokens},{n}]" in run(1 << 30).as_text()
    in_blocks = run(tokens * 4 * 512)
    assert f"[{tokens},{n}]" not in in_blocks.as_text()
    assert '"TopK"' in in_blocks.as_text()
    # The block twice (the product and its masked copy) and the candidates.
    assert in_blocks.memory_analysis().temp_size_in_bytes < 4 * tokens * (2 * 512 + 8 * k) + 10_000
