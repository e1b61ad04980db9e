"""Hook points as places in a stack of sublayers, the cost of its parts, and what every family's record keeps to."""

import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.errors import BadInput
from jaxsae.lm import architecture
from jaxsae.lm.hooks import parse
from tests.lm import tiny

FOLDERS = {"gpt2": tiny.FOLDER, "gpt_neo": tiny.FOLDER.parent / "golden_neo"}
FOLDERS |= {name: tiny.FOLDER.parent / "families" / name for name in architecture.ARCHITECTURES.keys() - FOLDERS.keys()}


@pytest.fixture(scope="module")
def lm():
    return tiny.model()


def test_every_family_says_what_the_rest_of_the_package_asks():
    assert FOLDERS.keys() == architecture.ARCHITECTURES.keys()
    for name, folder in FOLDERS.items():
        lm = lms.load(str(folder))
        config, family = lm.config, architecture.of(lm.config)
        assert config.architecture == name and hash(config) == hash(replace(config))
        assert min(config.d_model, config.n_layer, config.n_ctx, config.vocab_size) > 0
        assert config.precision == "float32" and lms.load(str(folder), "bfloat16").config.precision == "bfloat16"
        assert jax.tree.map(np.shape, lm.params) == jax.tree.map(np.shape, family.shapes(config))
        cuts, inside, flops = family.cuts(config), family.inside(config), family.flops(config)
        assert len(cuts) - 1 == len(inside) == len(flops) - 1 and all(cuts)
        hooks = [hook for names in (*cuts, *inside) for hook in names]
        assert len(hooks) == len(set(hooks))
        assert all(family.width(config, hook) == config.d_model for names in cuts for hook in names)


def test_two_names_of_one_place_are_one_cut(lm):
    depths = [lms.depth(lm.config, hook) for hook in tiny.RESIDUALS]
    assert depths == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    with pytest.raises(BadInput, match=r"blocks\.1\.mlp\.hook_post is not in the residual stream.*hook_resid_mid"):
        lms.depth(lm.config, "blocks.1.mlp.hook_post")


def test_blocks_downstream(lm):
    ends = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    starts = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
    for hook, first_end, first_start in (
        ("blocks.0.hook_resid_pre", 0, 1),
        ("blocks.0.hook_resid_post", 1, 2),
        ("blocks.1.hook_resid_pre", 1, 2),
        ("blocks.1.hook_resid_mid", 1, 2),
        ("blocks.2.hook_resid_post", 3, 3),
    ):
        assert lms.block_ends(lm.config, hook) == ends[first_end:], hook
        assert architecture.block_starts(lm.config, hook) == starts[first_start:], hook


def test_names_of_hook_points_parse_and_print_alike():
    for name in tiny.HOOKS:
        assert str(parse(name, tiny.LAYERS)) == name


def test_the_default_hook_is_at_three_quarters_of_the_depth():
    for n_layer in range(1, 49):
        hook = parse(lms.default_hook(n_layer), n_layer)
        assert hook.kind == "hook_resid_post"
        assert abs(hook.layer + 1 - 0.75 * n_layer) < 1, n_layer


def test_flops_are_two_for_every_weight_of_a_matrix(lm):
    sizes = {"/".join(map(str, path)): a.size for path, a in jax.tree_util.tree_flatten_with_path(lm.params)[0]}
    weights = sum(size for path, size in sizes.items() if "kernel" in path)
    unembedding = lm.config.d_model * lm.config.vocab_size
    for hook in tiny.RESIDUALS:
        assert sum(architecture.flops(lm.config, hook)) == 2 * (weights + unembedding), hook
    # Before the cut: the embedding costs nothing; a block has 4 d^2 weights in attention and 8 d^2 in the MLP.
    d = lm.config.d_model
    assert architecture.flops(lm.config, "blocks.0.hook_resid_pre")[0] == 0
    assert architecture.flops(lm.config, "blocks.1.hook_resid_mid")[0] == 2 * (12 + 4) * d**2


def test_a_config_is_read_without_a_model_library():
    code = "import sys, jaxsae.lm, jaxsae.lm.architecture, jaxsae.lm.config, jaxsae.lm.model, jaxsae.lm.weights\n"
    code += "import jaxsae.lm.tokenizer\nprint(sorted({'flax', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
