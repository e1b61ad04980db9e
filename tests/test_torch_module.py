"""What the torch module refuses; what it computes is compared in tests/interop/with_their_own_code.py."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsae.interop import native
from tests.interop.families import random_sae

pytest.importorskip("torch")


def test_what_it_cannot_compute_is_refused(tmp_path):
    from jaxsae.torch_module import TorchSAE

    sae = random_sae("topk", "unit_norm")
    native.save(sae, tmp_path / "plain", {})
    assert TorchSAE.load(tmp_path / "plain").spec["activation"] == "topk"
    native.save(sae.replace(spec=sae.spec.replace(sections=2)), tmp_path / "crosscoder", {})
    with pytest.raises(ValueError, match="a crosscoder of 2 sections"):
        TorchSAE.load(tmp_path / "crosscoder")
    save_file({"W_enc": np.zeros((2, 2), np.float32)}, tmp_path / "sae.safetensors")
    with pytest.raises(ValueError, match="does not say what its arrays mean"):
        TorchSAE.load(tmp_path)
