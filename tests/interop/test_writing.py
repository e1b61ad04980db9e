"""Files that jaxsae writes for other libraries compute what it computes, and come back bit by bit."""

import jax
import numpy as np
import pytest

from jaxsae import interop
from jaxsae.errors import BadInput
from jaxsae.interop.interface import Given
from tests.interop import plain
from tests.interop.families import PAIR, activations, everything, random_sae
from tests.interop.peers import Peer, difference

TOLERANCE = 2e-6
CASES = everything()
NORMALISED = {name for name, (sae, _) in CASES.items() if sae.spec.normalise != "none"}
TOPK = {"topk", "multi_topk", "topk, no b_dec", "topk, normalised rows"}
OTHERS = {"groupmax", "topk_without_relu"}
PAIRS = {name for name in CASES if "transcoder" in name}
TOPK_PAIRS, SKIPS = {name for name in PAIRS if "topk" in name}, {name for name in PAIRS if "skip" in name}
PAIRS_WITHOUT_RELU = {name for name in PAIRS if name.endswith("without_relu")}
GATED = {"gated", "gated, no b_dec"}
JUMPS = set(CASES) - NORMALISED - TOPK - OTHERS - GATED - TOPK_PAIRS
# What each format cannot say.
REFUSED = {
    "jaxsae": set(),
    "sae_lens": OTHERS | {"topk, unit_norm", "jumprelu, unit_norm"} | TOPK_PAIRS,
    "sparsify": set(CASES) - TOPK - {"groupmax"} - (TOPK_PAIRS - PAIRS_WITHOUT_RELU),
    "dictionary_learning": OTHERS | NORMALISED | PAIRS,
    "gemma_scope": set(CASES) - JUMPS | SKIPS,
    # Hook points of two kinds of one layer.
    "circuit_tracer": set(CASES) - JUMPS - {"topk_without_relu"} - PAIRS_WITHOUT_RELU,
}


def whole(sae):
    return jax.tree.map(lambda rows: np.asarray(rows[:]), sae)


def same_arrays(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.parametrize("to", interop.WRITTEN)
def test_every_family_in_every_format(tmp_path, to):
    x, refused = activations(), set()
    for number, (name, (sae, about)) in enumerate(CASES.items()):
        out = tmp_path / str(number)
        about = PAIR if to == "circuit_tracer" else about
        try:
            interop.write(sae, about, out, to)
        except BadInput:
            assert not out.exists(), name
            refused.add(name)
            continue
        hooks = {key: value for key, value in about.items() if key.startswith("hook")}
        given = Given(**hooks) if to == "gemma_scope" else Given()
        again, known = whole(interop.read(out, given=given)[0]), interop.describe(out, given=given)
        for ours, theirs in zip(plain.outputs(again, x), plain.outputs(sae, x)):
            assert difference(ours, theirs) < TOLERANCE, name
            np.testing.assert_array_equal(ours != 0, theirs != 0, name)
        assert to == "sparsify" or known["hook"] == about["hook"], name
        # What is read has nothing left to fold.
        interop.write(again, about, tmp_path / f"{number} again", to)
        twice = whole(interop.read(tmp_path / f"{number} again", given=given)[0])
        assert twice.spec == again.spec and same_arrays(twice, again), name
    assert refused == REFUSED[to]


SAME = {
    "sae_lens": ("saelens/standard_bdec0", "saelens/topk_layer_norm", "saelens/gated_bdec1", "saelens/jumprelu_bdec1"),
    "sparsify": ("sparsify/topk", "sparsify/multi_topk", "sparsify/groupmax"),
    "dictionary_learning": tuple(
        f"dictionary_learning/{name}"
        for name in ("standard_new", "gated", "jumprelu", "topk", "batchtopk", "matryoshka")
    ),
    "gemma_scope": ("gemma_scope/residual",),
}


@pytest.mark.parametrize("to, name", [(to, name) for to, names in SAME.items() for name in names])
def test_their_files_come_back_as_they_were(tmp_path, shared, to, name):
    """Read, written and read: the same bits, and the library's own numbers."""
    shared(f"fixtures/peers/{name}")
    peer = Peer(name)
    sae, about = interop.read(peer.path)
    assert interop.write(whole(sae), about, tmp_path / "a", to) == []
    again, facts = interop.read(tmp_path / "a")
    assert again.spec == sae.spec and same_arrays(again, sae)
    assert [facts.get(key) for key in ("hook", "lm", "context", "threshold")] == [
        about.get(key) for key in ("hook", "lm", "context", "threshold")
    ]
    theirs = peer.arrays()
    for ours, name in zip(plain.outputs(again, theirs["x"]), ("acts", "recon")):
        assert difference(ours, theirs[name]) < TOLERANCE


def test_what_is_folded_is_said(tmp_path):
    notes = interop.write(random_sae("relu", decoder="normalised"), {}, tmp_path / "a", "gemma_scope")
    assert [note[:12] for note in notes] == ["it is writte", "decoder rows", "what is subt"]
    with pytest.raises(
        BadInput, match="sparsify has topk, multi_topk, groupmax without normalisation, and this is topk"
    ):
        interop.write(random_sae("topk", "ln_std"), {}, tmp_path / "b", "sparsify")


@pytest.mark.parametrize("to", ["sae_lens", "dictionary_learning"])
def test_a_hook_point_that_a_library_has_no_name_for_comes_back(tmp_path, to):
    sae, about = CASES["topk"]
    hook = "blocks.1.attn.hook_z"
    interop.write(sae, about | {"hook": hook}, tmp_path / "sae", to)
    assert interop.describe(tmp_path / "sae")["hook"] == hook
