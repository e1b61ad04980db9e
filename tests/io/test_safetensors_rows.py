"""Streaming to safetensors: the bytes of the library's own writer, whatever the blocks and wherever the rows are."""

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsae import interop
from jaxsae.distributed.mesh import make_mesh
from jaxsae.interop import native
from jaxsae.io import safetensors_rows
from jaxsae.sae.types import Spec
from tests.sae import dense

RNG = np.random.default_rng(0)
TENSORS = {
    "W_enc": RNG.normal(size=(56, 7)).astype(np.float32),
    "b_dec": RNG.normal(size=7).astype(np.float32),
    "extra.count": np.arange(56, dtype=np.int32),
    "half": RNG.normal(size=(56, 3)).astype(np.float16),
    'é"\\': RNG.normal(size=(16, 3, 2)).astype(ml_dtypes.bfloat16),
    "no rows": np.zeros((0, 3), np.uint8),
}
METADATA = {"jaxsae": 'x\n"é"\x01 {}'}


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize("spec", [None, jax.P(), jax.P("latent"), jax.P("data"), jax.P(("data", "latent"))], ids=str)
def test_the_bytes_of_safetensors(tmp_path, block, spec):
    tensors = TENSORS
    if spec is not None:
        tensors = {
            k: jax.device_put(v, jax.NamedSharding(make_mesh(2, 4), spec if len(v) > 7 else jax.P()))
            for k, v in TENSORS.items()
        }
    save_file(TENSORS, tmp_path / "theirs", METADATA)
    safetensors_rows.write(tmp_path / "ours", tensors, METADATA, block)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_loading_onto_a_mesh(tmp_path):
    sae = dense.random_sae(jax.random.key(0), 16, 4, Spec("topk", 3, "ln_std", "free", False), np.float32)
    native.save(sae, tmp_path, {})
    loaded = interop.load(tmp_path, make_mesh(2, 4))
    assert loaded.W_dec.sharding.spec == jax.P("latent")
    jax.tree.map(np.testing.assert_array_equal, loaded, sae)
