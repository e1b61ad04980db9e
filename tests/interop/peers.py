"""What other libraries' files hold, as jaxsae reads it, beside what those libraries computed from them."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import jaxsae
from jaxsae.distributed.mesh import make_mesh
from jaxsae.sae import fold
from jaxsae.sae.sharded import choose
from jaxsae.sae.types import SAE
from tests.conftest import DATA

ROOT = DATA / "fixtures/peers"
LIBRARIES = ("saelens", "saelens_v5", "sparsify", "dictionary_learning", "openai", "e2e_sae", "gemma_scope")
NAMES = [str(f.parent.relative_to(ROOT)) for name in LIBRARIES for f in sorted((ROOT / name).glob("*/meta.json"))]
# What the files leave open.
GIVEN = {
    "saelens/topk_expected_average": {"input_scale": 1.0},
    "e2e_sae/wandb_two_positions": {"hook": "blocks.1.hook_resid_pre"},
}

# What fixtures state that is not computed from the file: targets, latents that top_acts belong to, what was scaled
# before it was saved.
INPUTS = ("y", "top_indices", "before_scaling")


@dataclass(frozen=True)
class Peer:
    """One fixture: the files of a library, and the arrays that it computed."""

    name: str

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def path(self) -> Path:
        """The folder with the autoencoder's files."""
        first = next(f for f in json.loads((self.folder / "meta.json").read_text())["files"])
        return (self.folder / first).parent

    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "golden.npz") as golden:
            return {name: golden[name] for name in golden}

    def load(self, **given) -> SAE:
        return jaxsae.load(self.path, **GIVEN.get(self.name, {}) | given)


def outputs(sae: SAE, x) -> tuple[np.ndarray, np.ndarray]:
    """(latents [B, n], reconstructions [B, d_out]) of x [B, d], as people compute them."""
    code = jaxsae.encode(sae, x)
    return np.asarray(jaxsae.dense(code, sae.n)), np.asarray(jaxsae.decode(sae, code))


def batch_topk(sae: SAE, x) -> np.ndarray:
    """Latents of x [B, d] as BatchTopK chooses them in training."""
    spec = sae.spec.replace(activation="batch_topk")
    sae = sae.replace(spec=spec, extra={"threshold": np.zeros(sae.n, np.float32)})
    with jax.set_mesh(make_mesh(1, 1)):
        chosen = jax.device_get(choose(sae, x, training=True))
    z = np.zeros((len(x), sae.n), np.float32)
    np.put_along_axis(z, chosen.indices, np.where(chosen.mask, chosen.pre, 0), 1)
    return z


def compared(peer: Peer) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{array: (what jaxsae computes, what the library did)} of every array that the fixture states."""
    theirs = peer.arrays()
    x, sae = theirs.pop("x"), peer.load()
    z, xhat = outputs(sae, x)
    if peer.name == "e2e_sae/wandb_two_positions":
        z2, xhat2 = outputs(jaxsae.load(peer.path, hook="blocks.2.hook_resid_post"), x)
        first, second = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"
        ours = {f"acts/{first}": z, f"recon/{first}": xhat, f"acts/{second}": z2, f"recon/{second}": xhat2}
    else:
        ours = {"acts": z, "recon": xhat}
    ours |= {name: of(peer, sae, x, z, xhat, theirs) for name, of in OTHERS.items() if name in theirs}
    left = {name for name in theirs if name not in ours and not name.startswith(INPUTS)}
    assert not left, left
    return {name: (a, theirs[name]) for name, a in ours.items()}


def _before_save(peer, sae, x, z, xhat, theirs):
    """AutoEncoder's loader scales what was saved; no other does."""
    normalised = peer.name.startswith("dictionary_learning/")
    return outputs(peer.load(unit_norm_decoder=False), x) if normalised else (z, xhat)


def _unscaled(peer, sae, x, z, xhat, theirs):
    return outputs(peer.load(input_scale=1.0), x) if "embedding" in peer.name else (z, xhat)


def _preacts(peer, sae, x, z, xhat, theirs):
    return outputs(sae.replace(spec=sae.spec.replace(activation="topk_without_relu", k=sae.n)), x)[0]


def _above(peer, sae, x, z, xhat, theirs):
    threshold = jaxsae.describe(peer.path)["threshold"]
    spec = sae.spec.replace(activation="jumprelu")
    return outputs(sae.replace(spec=spec, extra={"threshold": np.full(sae.n, threshold, np.float32)}), x)[0]


def _wider(sae, x):
    return outputs(sae.replace(spec=sae.spec.replace(k=4 * sae.spec.k)), x)


def _fvu(xhat, x):
    return ((xhat - x) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


# How jaxsae has what else fixtures state: {array: function(peer, sae, x, z, xhat, theirs)}.
OTHERS = {
    "acts_before_save": lambda *a: _before_save(*a)[0],
    "recon_before_save": lambda *a: _before_save(*a)[1],
    "acts_normalize_decoder_false": lambda *a: _before_save(*a)[0],
    "recon_normalize_decoder_false": lambda *a: _before_save(*a)[1],
    "acts_inference_class": lambda peer, sae, x, z, xhat, theirs: z,
    "recon_inference_class": lambda peer, sae, x, z, xhat, theirs: xhat,
    "acts_v6": lambda peer, sae, x, z, xhat, theirs: z,
    "recon_v6": lambda peer, sae, x, z, xhat, theirs: xhat,
    "scaling_factor": lambda peer, sae, x, z, xhat, theirs: sae.d**0.5 / np.linalg.norm(x, axis=1).mean(),
    "acts_folded": lambda peer, sae, x, z, xhat, theirs: _scaled(x, peer, theirs)[0],
    "recon_folded": lambda peer, sae, x, z, xhat, theirs: _scaled(x, peer, theirs)[1],
    "topk_threshold": lambda peer, sae, x, z, xhat, theirs: sae.extra["threshold"][0],
    "acts_batch_topk": lambda peer, sae, x, z, xhat, theirs: batch_topk(sae, x),
    "acts_threshold": _above,
    "features_of_forward": lambda peer, sae, x, z, xhat, theirs: z * np.asarray(fold.row_norms(sae)),
    "acts_formula": lambda *a: _unscaled(*a)[0],
    "recon_formula": lambda *a: _unscaled(*a)[1],
    "pre_acts": _preacts,
    "mu": lambda peer, sae, x, z, xhat, theirs: np.asarray(jaxsae.encode(sae, x).mean)[:, None],
    "std": lambda peer, sae, x, z, xhat, theirs: np.asarray(jaxsae.encode(sae, x).scale)[:, None],
    "fvu": lambda peer, sae, x, z, xhat, theirs: _fvu(xhat, theirs.get("y", x)),
    "top_acts": lambda peer, sae, x, z, xhat, theirs: np.take_along_axis(z, theirs["top_indices"], 1),
    "acts_forward": lambda peer, sae, x, z, xhat, theirs: _wider(sae, x)[0],
    "recon_forward": lambda peer, sae, x, z, xhat, theirs: _wider(sae, x)[1],
    "multi_topk_fvu": lambda peer, sae, x, z, xhat, theirs: _fvu(_wider(sae, x)[1], x),
}


def _scaled(x, peer: Peer, theirs: dict):
    return outputs(jaxsae.load(peer.path, input_scale=float(theirs["scaling_factor"])), x)


def difference(ours, theirs) -> float:
    """The largest difference, in the largest absolute value; absolute if all values are 0."""
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1))
