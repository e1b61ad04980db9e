"""Files that other libraries wrote compute what those libraries compute from them."""

from dataclasses import fields

import jax
import numpy as np
import pytest

from jaxsae import interop
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import SAE
from tests.interop.peers import NAMES, Peer, compared, difference

# Relative to the largest value.
TOLERANCE = 2e-6
SKIPS = "skip_autoencoder", "transcoder_skip"
HAS_SKIP = "W_skip" in {f.name for f in fields(SAE)}


@pytest.mark.parametrize("name", NAMES)
def test_every_array_of_every_library(name):
    if name.endswith(SKIPS) and not HAS_SKIP:
        pytest.skip("skip connections are not computed yet")
    for array, (ours, theirs) in compared(Peer(name)).items():
        assert ours.shape == np.shape(theirs), array
        assert difference(ours, theirs) <= TOLERANCE, array
        if array.startswith(("acts", "features")):
            np.testing.assert_array_equal(ours != 0, theirs != 0, array)


def test_on_a_mesh(shared):
    """Folded and transposed arrays are laid out by rows as others are."""
    shared("fixtures/peers/saelens")
    path = Peer("saelens/topk_unfolded_rescale").path
    on_mesh, whole = interop.load(path, make_mesh(2, 4)), interop.load(path)
    assert on_mesh.W_enc.sharding.spec == jax.P("latent")
    jax.tree.map(np.testing.assert_array_equal, on_mesh, whole)


def test_groupmax_on_a_mesh(shared):
    """Groups lie within the parts of the mesh, or the mesh is refused."""
    shared("fixtures/peers/sparsify")
    peer = Peer("sparsify/groupmax")
    x, theirs = (peer.arrays()[name] for name in ("x", "recon"))
    for shape in ((2, 4), (1, 8)):
        mesh = make_mesh(*shape)
        sae = interop.load(peer.path, mesh)
        with jax.set_mesh(mesh):
            compute = jax.jit(lambda sae, x: autoencode(sae, x, choose(sae, x)).xhat)
            if shape == (1, 8):
                with pytest.raises(BadInput, match="96 latents on 8 devices are not 4 groups"):
                    compute(sae, x)
                continue
            np.testing.assert_allclose(compute(sae, x), theirs, atol=2e-6 * np.abs(theirs).max())
