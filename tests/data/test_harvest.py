"""Harvested activations: they are those of the model, a stopped harvest ends with the same bytes, damage is found."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.data import harvest, harvested
from jaxsae.data.arrays import read
from jaxsae.data.arrays.opened import open_files
from jaxsae.data.files import FileSource
from jaxsae.data.harvested import Harvest
from jaxsae.distributed.mesh import make_mesh, replicate
from jaxsae.errors import BadInput

HOOKS = ("blocks.0.hook_resid_post", "blocks.0.mlp.hook_post", "blocks.1.hook_attn_out")
T = 8
ASKED = Harvest(
    lm="tiny",
    process_weights=False,
    lm_precision="float32",
    hooks=HOOKS,
    context=T,
    dtype="float32",
    shard_tokens=5 * T,
    seed=0,
    text=("text",),
    fingerprints={"data": "1"},
    tokens={"train": 12 * T, "held_out": 2 * T},
)


class Contexts:
    """Random contexts; some are padded."""

    def __init__(self, seed, count=40):
        rng = np.random.default_rng(seed)
        self.tokens = rng.integers(0, 300, (count, T), dtype=np.int32)
        self.tokens[::3, 5:] = -1

    def host(self, start, stop):
        return self.tokens[start:stop]


SOURCES = {"train": Contexts(0), "held_out": Contexts(1)}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(2, 1)


@pytest.fixture(scope="module")
def lm(tiny_lm, mesh):
    return replicate(lms.load(str(tiny_lm)), mesh)


@pytest.fixture(scope="module")
def whole(lm, mesh, tmp_path_factory):
    """A harvest that nothing disturbed."""
    folder = tmp_path_factory.mktemp("harvest") / "whole"
    harvest.write(folder, ASKED, lm, SOURCES, mesh)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def source(folder, split, cache, hook=HOOKS[0]):
    return FileSource(open_files(f"{folder}#{hook}", None, None, cache), split, None)


def test_what_is_harvested_is_what_the_model_computes(whole, tiny_lm):
    names = [*(harvested.shard_name("train", number) for number in range(3)), harvested.shard_name("held_out", 0)]
    shards = [read(whole / name) for name in names]
    tokens = np.concatenate([shard["tokens"] for shard in shards])
    np.testing.assert_array_equal(
        tokens, np.concatenate([SOURCES["train"].tokens[:12], SOURCES["held_out"].tokens[:2]])
    )
    there = tokens >= 0
    model, prefix = lms.load(str(tiny_lm)), jax.jit(lms.prefix, static_argnames="hook")
    for hook in HOOKS:
        x = np.concatenate([shard[hook] for shard in shards])
        want = np.asarray(prefix(model, np.maximum(tokens, 0), hook))
        np.testing.assert_allclose(x[there], want[there], rtol=1e-4, atol=1e-4)
        assert not x[~there].any()


def test_all_hooks_are_read_in_one_pass_that_ends_at_the_last(lm, mesh):
    cost = lambda f, *args: jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
    tokens = jax.numpy.zeros((4, T), jax.numpy.int32)
    with jax.set_mesh(make_mesh(1, 1)):
        local = jax.tree.map(lambda a: np.asarray(a), lm)
        together = cost(lambda lm, t: harvest._read(lm, t, HOOKS[:2], "float32"), local, tokens)
        deepest = cost(lambda lm, t: lms.prefix(lm, t, HOOKS[0]), local, tokens)
        full = cost(lambda lm, t: lms.run(lm, t), local, tokens)
    assert together < 1.1 * deepest < 0.6 * full


def test_harvested_contexts_are_blocks_and_the_held_out_part_is_the_texts(whole, tmp_path):
    train, held_out = source(whole, "train", tmp_path), source(whole, "held_out", tmp_path)
    assert (len(train), len(held_out), train.rows) == (12, 2, T)
    for part, split in ((train, "train"), (held_out, "held_out")):
        there = SOURCES[split].tokens[: len(part)] >= 0
        np.testing.assert_array_equal(part.kept(part.host(0, len(part))), there)
        assert part.count == there.sum()


def test_a_transcoder_reads_two_hooks_of_the_same_tokens(whole, tmp_path):
    files = open_files(f"{whole}#{HOOKS[0]}", None, None, tmp_path, HOOKS[1])
    part, shards = FileSource(files, "train", None), [read(path) for path in sorted(whole.glob("train*"))]
    for got, hook in zip(part.activations(part.host(0, 12)), HOOKS[:2], strict=True):
        np.testing.assert_array_equal(got, np.concatenate([shard[hook] for shard in shards]))
    assert files.origin["hook_out"] == HOOKS[1]
    assert files.fingerprint != source(whole, "train", tmp_path).fingerprint


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_numbers_are_rounded_once(lm, mesh, whole, tmp_path, dtype):
    asked = replace(ASKED, dtype=dtype, hooks=HOOKS[:1], tokens={"train": 12 * T})
    harvest.write(tmp_path / "out", asked, lm, SOURCES, mesh)
    for path in (tmp_path / "out").glob("*.safetensors"):
        want = read(whole / path.name)[HOOKS[0]].astype(harvest.DTYPES[dtype])
        got = read(path)[HOOKS[0]]
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("shard, written", [(0, False), (1, True), (3, False), (3, True)])
def test_a_harvest_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    lm, mesh, whole, tmp_path, monkeypatch, shard, written
):
    """Stopped before or after a shard was written, but before the index named it."""
    folder, save, made = tmp_path / "out", harvest._save, []

    def stop(folder, asked, done, name, tensors):
        if len(made) == shard:
            if written:
                monkeypatch.setattr(harvested, "write", lambda *_: None)
                save(folder, asked, done, name, tensors)
            (folder / f".{name}.writing").write_bytes(b"half")
            raise KeyboardInterrupt
        made.append(name)
        return save(folder, asked, done, name, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(harvest, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            harvest.write(folder, ASKED, lm, SOURCES, mesh)
    monkeypatch.undo()
    with pytest.raises(BadInput, match="is an unfinished harvest: run the same `jaxsae harvest` again"):
        open_files(f"{folder}#{HOOKS[0]}", None, None, tmp_path / "cache")
    kept = {name: (folder / name).stat().st_mtime_ns for name in made}
    harvest.write(folder, ASKED, lm, SOURCES, mesh)
    assert contents(folder) == contents(whole)
    assert {name: (folder / name).stat().st_mtime_ns for name in made} == kept


def test_a_finished_harvest_is_left_as_it_is(lm, mesh, whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    monkeypatch.setattr(harvest, "_activations", None)
    assert harvest.write(whole, ASKED, lm, SOURCES, mesh).complete
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before


@pytest.fixture
def copy(whole, tmp_path):
    import shutil

    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_damaged_shard_is_refused_and_made_again(lm, mesh, whole, copy, tmp_path):
    path = copy / "train-00001.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    # The last bytes of a shard are those of the tensor that is last in it.
    with pytest.raises(BadInput, match=r"train-00001\.safetensors is damaged, its tokens are not"):
        source(copy, "train", tmp_path / "cache")
    (copy / "held_out-00000.safetensors").unlink()
    with pytest.raises(BadInput, match=r"held_out-00000\.safetensors is missing"):
        source(copy, "train", tmp_path / "cache")
    harvest.write(copy, ASKED, lm, SOURCES, mesh)
    assert contents(copy) == contents(whole)
    source(copy, "train", tmp_path / "cache")


def test_a_bit_of_the_activations_is_noticed_too(copy, tmp_path):
    path = copy / "train-00000.safetensors"
    damaged = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(damaged[:8], "little")
    damaged[header] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BadInput, match=rf"train-00000\.safetensors is damaged, its {HOOKS[0]}"):
        source(copy, "train", tmp_path / "cache")


def test_a_harvest_grows_to_more_tokens(lm, mesh, whole, copy, tmp_path):
    more = replace(ASKED, tokens={"train": 17 * T, "held_out": 3 * T})
    harvest.write(tmp_path / "at once", more, lm, SOURCES, mesh)
    harvest.write(copy, more, lm, SOURCES, mesh)
    assert contents(copy) == contents(tmp_path / "at once")
    with pytest.raises(BadInput, match=r"holds more than that, such as train-00003.*136 of train, 24 of held_out"):
        harvest.write(copy, ASKED, lm, SOURCES, mesh)


@pytest.mark.parametrize(
    "other", [{"hooks": HOOKS[:1]}, {"dtype": "float16"}, {"context": 4}, {"fingerprints": {"data": "2"}}, {"seed": 1}]
)
def test_another_harvest_is_not_mixed_in(lm, mesh, whole, other):
    (name,) = other
    with pytest.raises(BadInput, match=rf"is another harvest, {name} was .*: give the same flags, or another folder"):
        harvest.write(whole, replace(ASKED, **other), lm, SOURCES, mesh)


def test_contexts_of_another_text_are_not_mixed_in(lm, mesh, whole):
    """Or of the same text in another order, whatever the fingerprint says."""
    others = SOURCES | {"train": Contexts(2)}
    with pytest.raises(BadInput, match=r"other contexts in train-00000\.safetensors than these flags and this text"):
        harvest.write(whole, replace(ASKED, tokens={"train": 17 * T, "held_out": 2 * T}), lm, others, mesh)


def test_a_folder_of_something_else_is_not_written_into(lm, mesh, tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(BadInput, match="holds something else than a harvest"):
        harvest.write(tmp_path, ASKED, lm, SOURCES, mesh)


def test_numbers_that_float16_cannot_hold_are_refused(lm, mesh, tmp_path):
    large = replace(lm, params=jax.tree.map(lambda a: a * 1e5, lm.params))
    asked = replace(ASKED, dtype="float16", hooks=HOOKS[:1])
    with pytest.raises(BadInput, match=r"numbers that float16 cannot hold: give --dtype bfloat16 or float32"):
        harvest.write(tmp_path / "out", asked, large, SOURCES, mesh)


def test_special_tokens_are_known_by_name(lm, mesh, tmp_path):
    asked = replace(ASKED, hooks=HOOKS[:1], special_tokens={"eos": 7})
    harvest.write(tmp_path / "out", asked, lm, SOURCES, mesh)
    files = open_files(str(tmp_path / "out"), None, None, tmp_path / "cache")
    assert files.token_ids(["eos", "11"]) == (7, 11)
    with pytest.raises(BadInput, match=r"--skip-tokens has bos, and .* does not say which token that is: give its id"):
        files.token_ids(["bos"])
    tokens = SOURCES["train"].tokens[:12]
    part = FileSource(files, "train", None, files.token_ids(["eos", "11"]))
    np.testing.assert_array_equal(part.kept(part.host(0, 12)), ~np.isin(tokens, (-1, 7, 11)))
