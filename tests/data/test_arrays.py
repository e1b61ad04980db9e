"""Activations as people store them: contexts, several tensors a file, sub-folders, other formats, tokens."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxsae.config import Config, with_fields
from jaxsae.errors import BadInput
from jaxsae.run.eval_config import EvalConfig
from tests.data.test_files import DTYPES, WIDTH, bad, blocks, random_rows, rows_of, source
from tests.torch_files import save

T = 10


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


def contexts(count, dtype=np.float32, seed=0, T=T):
    return random_rows(count * T, dtype, seed).reshape(count, T, WIDTH)


@pytest.mark.parametrize("ending", [".npy", ".safetensors", ".pt", ".npz", ".zarr"])
def test_contexts_are_read_whole(folder, ending):
    parts = [contexts(30), contexts(20, seed=1)]
    for number, part in enumerate(parts):
        keep(folder / f"{number}{ending}", {"x": part})
    train, held_out = source(folder), source(folder, "held_out")
    assert train.rows == T and train.shape == (T, WIDTH)
    # A twentieth of 30 and of 50 contexts end with the shards.
    np.testing.assert_array_equal(train.host(0, 48), np.concatenate([parts[0][:29], parts[1][:19]]))
    np.testing.assert_array_equal(held_out.host(0, 2), np.stack([parts[0][-1], parts[1][-1]]))
    np.testing.assert_array_equal(rows_of(source(folder, "all")), np.concatenate(parts).reshape(-1, WIDTH))


def keep(path, tensors):
    """Write arrays by name into a file of the format that its ending says; .npy has room for one, without its name."""
    if path.suffix == ".npy":
        np.save(path, next(iter(tensors.values())))
    elif path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **tensors)
    elif path.suffix == ".zarr":
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(path, mode="w")
        for name, array in tensors.items():
            group.create_array(name, data=array)
    else:
        save(path, tensors)


def test_contexts_of_different_length_are_filled_up(folder):
    np.save(folder / "0.npy", contexts(3))
    np.save(folder / "1.npy", contexts(2, seed=1, T=4))
    want = blocks(contexts(3), T) + blocks(contexts(2, seed=1, T=4), T)
    got = source(folder, "all")
    np.testing.assert_array_equal(got.host(0, 5), want)
    assert got.count == 3 * T + 2 * 4


def test_rows_and_contexts_are_not_mixed(folder):
    np.save(folder / "0.npy", contexts(3))
    np.save(folder / "1.npy", random_rows(70, np.float32))
    bad(folder, "1.npy holds rows, but .*0.npy contexts")


def test_files_in_sub_folders_are_read(folder):
    names = ["a/x/0.npy", "a/1.npy", "b/0.npy", "c.npy"]
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, random_rows(70, np.float32, seed))
    (folder / ".hidden").mkdir()
    np.save(folder / ".hidden" / "0.npy", random_rows(70, np.float32, 9))
    want = [random_rows(70, np.float32, seed) for seed in (1, 0, 2, 3)]
    np.testing.assert_array_equal(rows_of(source(folder, "all")), np.concatenate(want))


def test_a_single_file(folder):
    np.save(folder / "0.npy", random_rows(200, np.float32))
    np.save(folder / "1.npy", random_rows(200, np.float32, 1))
    np.testing.assert_array_equal(rows_of(source(folder / "0.npy", "all")), random_rows(200, np.float32))


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".npz", ".zarr"])
def test_one_of_several_tensors_is_chosen_by_its_name(tmp_path, ending):
    # The name of a folder may have the mark, too.
    folder = tmp_path / "run#2"
    folder.mkdir()
    tensors = {name: random_rows(100, np.float32, seed) for seed, name in enumerate(["a", "blocks.3.mlp.hook_post"])}
    keep(folder / f"0{ending}", tensors)
    for name, rows in tensors.items():
        np.testing.assert_array_equal(rows_of(source(tmp_path / f"run#2#{name}", "all")), rows)
    bad(folder, r"holds 2 arrays .*, a, blocks\.3\.mlp\.hook_post: choose one by --activations DIR#KEY")
    bad(tmp_path / "run#2#c", r"holds no array 'c': it holds a, blocks\.3\.mlp\.hook_post")
    bad(tmp_path / "nowhere#c", "nowhere holds no activations")


def test_an_npy_file_has_no_names(folder):
    np.save(folder / "0.npy", random_rows(100, np.float32))
    bad(folder.parent / "shards#a", "holds no array 'a': it holds one array without a name, so leave out #KEY")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_rows_of_archives_come_back_as_written(folder, dtype, ending):
    rows = random_rows(150, dtype)
    keep(folder / f"0{ending}", {"x": rows})
    np.testing.assert_array_equal(rows_of(source(folder, "all")), rows.astype(np.float32))


def test_compressed_archives_and_arrays_in_zarr_groups(folder):
    zarr = pytest.importorskip("zarr")
    rows = random_rows(150, np.float32)
    np.savez_compressed(folder / "0.npz", x=rows)
    zarr.save_array(folder / "1.zarr", rows[::-1])
    zarr.open_group(folder / "2.zarr", mode="w").create_group("inner").create_array("x", data=2 * rows)
    np.testing.assert_array_equal(rows_of(source(folder, "all")), np.concatenate([rows, rows[::-1], 2 * rows]))


@pytest.mark.parametrize("ending", [".pt", ".npz", ".zarr"])
def test_archives_that_are_cut_off(folder, ending):
    path = folder / f"0{ending}"
    for content in [b"", b"text" * 99, b"PK\3\4" + b"\0" * 99]:
        path.write_bytes(content)
        bad(folder, rf"0\{ending} ")
    if ending != ".zarr":
        path.unlink()
        keep(path, {"x": random_rows(150, np.float32)})
        whole = path.read_bytes()
        for size in (10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            bad(folder, rf"0\{ending} ")


IDS = np.arange(70, dtype=np.int32) % 7


def test_rows_of_tokens_to_skip_are_left_out(folder):
    rows = random_rows(70, np.float32)
    for beside in ("same file", "tokens.npy"):
        tensors = {"x": rows} | ({"tokens": IDS} if beside == "same file" else {})
        safetensors.numpy.save_file(tensors, folder / "0.safetensors")
        if beside == "tokens.npy":
            np.save(folder / "tokens.npy", IDS)
        np.testing.assert_array_equal(rows_of(source(folder, "all", skip=(0, 5))), rows[~np.isin(IDS, (0, 5))])
        np.testing.assert_array_equal(rows_of(source(folder, "all")), rows)


def test_one_token_file_is_for_all_shards_of_its_folder(folder):
    (folder / "b").mkdir()
    shards = [random_rows(size, np.float32, size) for size in (30, 25, 15)]
    for name, shard in zip(["a", "b/0", "c"], shards):
        np.save(folder / f"{name}.npy", shard)
    np.save(folder / "tokens.npy", IDS[:45])
    np.save(folder / "b" / "tokens.npy", np.full(25, 3))
    want = np.concatenate([shards[0][IDS[:30] != 3], shards[2][IDS[30:45] != 3]])
    np.testing.assert_array_equal(rows_of(source(folder, "all", skip=(3,))), want)


def test_tokens_make_contexts_of_flat_rows(folder):
    rows = random_rows(70, np.float32)
    np.save(folder / "0.npy", rows)
    np.save(folder / "tokens.npy", IDS.reshape(10, 7))
    got = source(folder, "all", skip_first=True)
    assert got.shape == (7, WIDTH)
    np.testing.assert_array_equal(rows_of(got), rows.reshape(10, 7, WIDTH)[:, 1:].reshape(-1, WIDTH))


def test_places_without_a_token_do_not_count(folder):
    rows = random_rows(70, np.float32)
    ids = np.where(np.arange(70) % 10 < 8, 1, -1)
    rows[ids < 0] = 0
    safetensors.numpy.save_file({"x": rows.reshape(7, 10, -1), "tokens": ids.reshape(7, 10)}, folder / "0.safetensors")
    got = source(folder, "all")
    np.testing.assert_array_equal(rows_of(got), rows[ids >= 0])
    assert got.files.facts["rows"] == 56 and got.files.facts["zero_rows"] == 0


def test_position_0_of_contexts_is_left_out(folder):
    x = contexts(12)
    np.save(folder / "0.npy", x)
    np.testing.assert_array_equal(rows_of(source(folder, skip_first=True)), x[:11, 1:].reshape(-1, WIDTH))


def test_what_the_files_do_not_say_cannot_be_left_out(folder):
    np.save(folder / "0.npy", random_rows(100, np.float32))
    with pytest.raises(BadInput, match=r"does not say which tokens .*tokens\.npy"):
        source(folder, skip=(3,))
    with pytest.raises(BadInput, match=r"rows without positions.*--no-skip-first"):
        source(folder, skip_first=True)


@pytest.mark.parametrize("ids", [np.zeros(99, np.int32), np.zeros(100, np.float32), np.zeros((4, 5, 5), np.int32)])
def test_tokens_that_do_not_fit(folder, ids):
    np.save(folder / "0.npy", random_rows(100, np.float32))
    np.save(folder / "tokens.npy", ids)
    bad(folder, r"tokens\.npy has tokens of shape .* beside 100 rows of activations")


def test_tokens_of_contexts_of_another_length(folder):
    np.save(folder / "0.npy", contexts(10))
    np.save(folder / "tokens.npy", np.zeros((20, 5), np.int32))
    bad(folder, r"tokens of contexts of 5, but the activations in .* are of contexts of 10")


def test_tokens_are_part_of_the_fingerprint(folder):
    np.save(folder / "0.npy", random_rows(100, np.float32))
    prints = {source(folder).fingerprint}
    for ids in (np.zeros(100, np.int32), np.ones(100, np.int32), np.ones((10, 10), np.int32)):
        np.save(folder / "tokens.npy", ids)
        prints.add(source(folder).fingerprint)
    assert len(prints) == 4


def test_bfloat16_of_npz_has_its_name_back(folder):
    rows = random_rows(100, ml_dtypes.bfloat16)
    np.savez(folder / "0.npz", x=rows)
    np.testing.assert_array_equal(rows_of(source(folder, "all")), rows.astype(np.float32))


def test_an_evaluation_leaves_out_what_the_files_can_say(folder):
    trained = with_fields(Config(), skip_first=True, skip_tokens=("3",))
    np.save(folder / "0.npy", random_rows(70, np.float32))
    on = EvalConfig(activations=str(folder)).data_of(trained).data
    assert (on.skip_first, on.skip_tokens) == (False, ())
    np.save(folder / "tokens.npy", IDS.reshape(10, 7))
    on = EvalConfig(activations=str(folder)).data_of(trained).data
    assert (on.skip_first, on.skip_tokens) == (True, ("3",))
