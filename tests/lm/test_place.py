"""Language models split over a mesh or kept in half precision: values, gradients, and what is there at a time."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae import lm as lms
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.lm import late
from jaxsae.lm.divergence import kl, kl_of_streams
from jaxsae.lm.gpt2 import GPT2Config
from jaxsae.lm.model import advance, capture, final, prefix, run
from jaxsae.lm.parallel import on_contexts
from jaxsae.lm.place import on_mesh, split_axis
from tests.lm import tiny
from tests.marks import slow

HOOK = "blocks.1.hook_resid_mid"


def golden(name):
    return lms.open_model(str(tiny.FOLDER.parent / name))


def put(mesh, *arrays):
    return [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in arrays]


def what_is_lost(lm, tokens, noise, mask):
    """KL of the predictions if `noise` is added at HOOK, as training computes it; [b]."""
    stream = prefix(lm, tokens, HOOK, mask)
    ends = [final(lm, x, HOOK, mask).reshape(-1, lm.config.d_model) for x in (stream, stream + noise)]
    return kl_of_streams(lm, *ends, chunk=7).reshape(tokens.shape).mean(1)


# 8 contexts are split over all devices; 4 on (4, 2) are repeated over `latent`.
@pytest.mark.parametrize(
    ("name", "mesh", "contexts"),
    [("golden_neo", (4, 2), 4), slow("golden", (2, 4), 8), slow("golden_neo", (1, 8), 8)],
)
def test_split_models_have_the_values_and_gradients_of_whole_ones(x64, name, mesh, contexts):
    host, mesh = golden(name), make_mesh(*mesh)
    tokens, draw = tiny.random_tokens(contexts, 10) % host.config.vocab_size, np.random.default_rng(0)
    noise, mask = (
        draw.normal(size=(*tokens.shape, host.config.d_model)),
        np.arange(10) < draw.integers(3, 11, (contexts, 1)),
    )

    def plain(noise):
        whole = lms.on_device(host, jnp.float64)
        stream = whole.prefix(tokens, HOOK, mask)
        return kl(whole.suffix(stream, HOOK, mask), whole.suffix(stream + noise, HOOK, mask)).mean()

    want, want_slope = jax.value_and_grad(plain)(jnp.asarray(noise))
    with jax.set_mesh(mesh):
        lm = on_mesh(host, mesh, "float64", shard=True)
        mean = lambda noise, lm, tokens, mask: on_contexts(what_is_lost, lm, tokens, noise, mask).mean()
        tokens, noise, mask = put(mesh, tokens, noise, mask)
        have, slope = jax.jit(jax.value_and_grad(mean))(noise, lm, tokens, mask)
        # Everything else that a model does, with what leaves a sublayer by a tap, and outside of shard_map.
        read = lambda lm, tokens: capture(lm, tokens, ["blocks.0.attn.hook_z"], {HOOK: lambda x: 2 * x})
        seen, logits = jax.jit(lambda lm, tokens: on_contexts(read, lm, tokens))(lm, tokens)
        columns = jax.jit(lambda lm: lms.unembed(lm, jnp.eye(lm.config.d_model)))(lm)
    np.testing.assert_allclose(have, want, rtol=1e-12)
    np.testing.assert_allclose(slope, want_slope, atol=1e-12 * np.abs(want_slope).max())
    whole = lms.on_device(host, jnp.float64)
    want_seen, want_logits = capture(whole, np.asarray(tokens), ["blocks.0.attn.hook_z"], {HOOK: lambda x: 2 * x})
    np.testing.assert_allclose(logits, want_logits, atol=1e-10)
    np.testing.assert_allclose(seen["blocks.0.attn.hook_z"], want_seen["blocks.0.attn.hook_z"], atol=1e-10)
    np.testing.assert_allclose(columns, lms.unembed(whole, jnp.eye(host.config.d_model)), atol=1e-10)


def test_one_piece_at_a_time_is_gathered():
    """In a training step: the prefix of some contexts after the others, and the suffix back and forth."""
    config = GPT2Config(vocab_size=512, n_ctx=8, d_model=128, n_layer=3, n_head=2, n_inner=512)
    shapes = late.shapes(config)
    host = lms.LM(jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes), config)
    mesh, hook = make_mesh(4, 2), "blocks.0.hook_resid_post"

    def local(lm, tokens, noise):
        stream = lax.map(lambda tokens: prefix(lm, tokens[None], hook)[0], tokens)
        # As end-to-end objectives walk on, from place to place.
        streams = (advance(lm, x, hook, "blocks.1.hook_resid_post") for x in (stream, stream + noise))
        ends = [final(lm, x, "blocks.1.hook_resid_post").reshape(-1, 128) for x in streams]
        return kl_of_streams(lm, *ends, chunk=8).reshape(tokens.shape).mean(1)

    with jax.set_mesh(mesh):
        lm = on_mesh(host, mesh, shard=True)
        tokens, noise = put(mesh, np.zeros((16, 8), np.int32), np.zeros((16, 8, 128), np.float32))
        step = jax.jit(jax.value_and_grad(lambda noise, lm, tokens: on_contexts(local, lm, tokens, noise).mean()))
        lowered = step.lower(noise, lm, tokens)
    # XLA takes the barriers out early for CPUs, whose simulated devices share their memory anyway.
    compiled = lowered.compile(compiler_options={"xla_disable_hlo_passes": "cse_barrier_expander"})
    size = lambda read: sum(leaf.nbytes for i, leaf in enumerate(jax.tree.leaves(host.params)) if i in read)
    pieces = {piece: size(late.reads(config, *piece)) for piece in late.pieces(config)}
    model = sum(leaf.nbytes for leaf in jax.tree.leaves(host.params))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert max(pieces.values()) == pieces["sublayer", 1] < 0.2 * model
    # The products of a backward pass turn the matrices of a sublayer around, one after the other.
    assert temporaries < 1.5 * pieces["sublayer", 1]
    gathered = re.findall(r" f32\[([\d,]+)\]\S* all-gather\(", compiled.as_text())
    assert {"128,384", "128,128", "128,512", "512,128", "8,128"} <= {*gathered}
    # Block 0 once, blocks 1 and 2 for the original, for what is compared with it, and for the gradient.
    assert gathered.count("128,384") == 1 + 2 * 3
    # The arguments of a device: an eighth of the matrices, and all vectors.
    vectors = sum(leaf.nbytes for leaf in jax.tree.leaves(host.params) if leaf.ndim == 1)
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(lm.params) for shard in leaf.addressable_shards[:1])
    assert held == (model - vectors) // 8 + vectors


def test_what_each_piece_reads():
    """Every parameter once, but for a tied embedding."""
    config = golden("golden").config
    names = [".".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(late.shapes(config))]
    reads = {piece: {names[i] for i in late.reads(config, *piece)} for piece in late.pieces(config)}
    assert reads["embed", None] == {"wte.embedding", "wpe.embedding"} and reads["unembed", None] == {"wte.embedding"}
    assert reads["sublayer", 3] == {f"h_1.{n}" for n in ("ln_2.scale", "ln_2.bias")} | {
        f"h_1.{n}" for n in ("c_fc.kernel", "c_fc.bias", "c_proj.kernel", "c_proj.bias")
    }
    assert set().union(*reads.values()) == {*names}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, slow(np.float16)], ids=str)
@pytest.mark.parametrize("precision", ["float32", slow("bfloat16")])
def test_half_precision_computes_what_a_float32_model_of_the_rounded_weights_does(dtype, precision):
    host = replace(golden("golden"), config=replace(golden("golden").config, precision=precision))
    mesh, name = make_mesh(1, 1), np.dtype(dtype).name
    rounded = replace(host, params=jax.tree.map(lambda a: a.astype(dtype).astype(np.float32), host.params))
    small, wide = on_mesh(host, mesh, name), on_mesh(rounded, mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(small.params)} == {np.dtype(dtype)}
    tokens = tiny.random_tokens(2)
    noise = np.random.default_rng(0).normal(size=(*tokens.shape, host.config.d_model)).astype(np.float32)
    lost = jax.jit(jax.value_and_grad(lambda noise, lm: what_is_lost(lm, tokens, noise, None).mean()))
    (have, slope), (want, want_slope) = lost(noise, small), lost(noise, wide)
    assert slope.dtype == np.float32
    np.testing.assert_allclose(have, want, rtol=1e-5)
    # Sums in another order change which way a bfloat16 is rounded.
    atol = (1e-5 if precision == "float32" else 2e-2) * np.abs(want_slope).max()
    np.testing.assert_allclose(slope, want_slope, atol=atol)
    logits = jax.jit(run)(small, tokens)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, jax.jit(run)(wide, tokens), atol=1e-4 if precision == "float32" else 0.1)


def test_float16_must_hold_the_weights():
    host = golden("golden")
    host.params["wpe"]["embedding"] = np.full_like(host.params["wpe"]["embedding"], 1e5)
    with pytest.raises(BadInput, match=r"float16 cannot hold the weights in .*golden: give bfloat16 or float32"):
        on_mesh(host, make_mesh(1, 1), "float16")


class Watched(np.ndarray):
    """An array that counts the numbers that are read of it."""

    def __getitem__(self, index):
        part = super().__getitem__(index)
        self.read.append(part.size)
        return part


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)], ids=str)
def test_a_device_reads_its_rows_of_the_file(tmp_path, shape):
    """Also of a kernel that is a matrix of the file, transposed."""
    file = np.memmap(tmp_path / "weights", np.float32, "w+", shape=(16, 24))
    file[:] = np.arange(384).reshape(16, 24)
    kernel = (file if shape == file.shape else file.T).view(Watched)
    kernel.read = []
    mesh = make_mesh(4, 2)
    lm = on_mesh(lms.LM({"kernel": kernel}, None), mesh, "bfloat16", shard=True)
    assert lm.split == (shape.index(16),) and kernel.read == [384 // 8] * 8
    np.testing.assert_array_equal(
        np.asarray(lm.params["kernel"], np.float32), np.asarray(kernel).astype(ml_dtypes.bfloat16)
    )
    assert [shard.data.shape for shard in lm.params["kernel"].addressable_shards] == [
        tuple(2 if size == 16 else size for size in shape)
    ] * 8


def test_axes_to_split():
    axis = lambda shape, devices=8: split_axis(shape, np.empty(shape).strides, devices)
    assert axis((64, 32)) == 0 and axis((63, 32)) == 1 and axis((63, 33)) is None and axis((64,)) is None
    assert on_mesh(golden("golden"), make_mesh(1, 1), shard=True).split is None
    with pytest.raises(BadInput, match=r"--lm-shard: no matrix of .*golden has an axis that divides over 5 devices"):
        on_mesh(golden("golden"), make_mesh(5, 1), shard=True)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=str)
def test_a_model_is_a_map_of_its_file_with_the_same_checksum(tmp_path, dtype):
    stored = {name: x.astype(dtype) for name, x in tiny.tensors().items()}
    folder = str(tiny.write(tmp_path / "model", stored, tiny.config()))
    host, loaded = lms.open_model(folder), lms.load(folder)
    for a, b in zip(jax.tree.leaves(host.params), jax.tree.leaves(loaded.params), strict=True):
        assert a.dtype == dtype and not a.flags.owndata and not a.flags.writeable
        np.testing.assert_array_equal(a.astype(np.float32), b)
    assert lms.checksum(host) == lms.checksum(loaded)
    assert (lms.checksum(host) == lms.checksum(tiny.model())) == (dtype == np.float32)
