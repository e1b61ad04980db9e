"""Shards of activations: the rows that were written come back; a bad shard is one BadInput."""

import itertools
import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxsae.data.files import ROWS, FileSource
from jaxsae.errors import BadInput

WIDTH = 6
# Every twentieth block is held out, so 20 blocks are the fewest.
SIZES = (13 * ROWS, 5 * ROWS + 17, 3 * ROWS)
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def random_rows(size, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=(size, WIDTH)).astype(dtype)


def write(path, rows):
    if path.suffix == ".npy":
        np.save(path, rows)
    else:
        safetensors.numpy.save_file({"activations": rows}, path, {"of": "a test"})


def write_folder(folder, dtype=np.float32, ending=".npy"):
    folder.mkdir(exist_ok=True)
    rows = [random_rows(size, dtype, seed) for seed, size in enumerate(SIZES)]
    for number, shard in enumerate(rows):
        write(folder / f"{number}{ending}", shard)
    return rows


def source(folder, split="train", seed=None):
    return FileSource(str(folder), split, seed, folder.parent / "cache")


def blocks(rows):
    """The whole blocks of shards, in order; rows behind a shard's last block are not used."""
    return [shard[i : i + ROWS] for shard in rows for i in range(0, len(shard) - ROWS + 1, ROWS)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_rows_come_back_as_written(folder, dtype, ending):
    want = np.array(blocks(write_folder(folder, dtype, ending)), np.float32)
    train, held_out = source(folder), source(folder, "held_out")
    assert train.width == WIDTH and train.rows == ROWS and train.shape == (ROWS, WIDTH)
    got = train.host(0, len(train))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.delete(want, range(19, len(want), 20), axis=0))
    np.testing.assert_array_equal(held_out.host(0, len(held_out)), want[19::20])


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.uint16, ">f4", "F"])
def test_other_numbers_and_orders_of_numbers(folder, dtype):
    folder.mkdir()
    rows = (100 * random_rows(20 * ROWS, np.float64)).astype(np.uint8)
    rows = np.asfortranarray(rows.astype(np.float32)) if dtype == "F" else rows.astype(dtype)
    np.save(folder / "a.npy", rows)
    np.testing.assert_array_equal(source(folder).host(0, 19).reshape(-1, WIDTH), rows[: 19 * ROWS])


def test_shards_of_a_folder_may_differ_in_kind(folder):
    # 11 blocks each, in alphabetical order; what is neither .npy nor .safetensors is no shard.
    rows = [random_rows(11 * ROWS, dtype, seed) for seed, dtype in enumerate(DTYPES)]
    folder.mkdir()
    for name, shard in zip(["b.safetensors", "a.npy", "c.safetensors"], rows, strict=True):
        write(folder / name, shard)
    (folder / "config.json").write_text("{}")
    ordered = [rows[1], rows[0], rows[2]]
    want = np.delete([block.astype(np.float32) for block in blocks(ordered)], 19, axis=0)
    np.testing.assert_array_equal(source(folder).host(0, 32), want)


def test_held_out_blocks_are_disjoint_from_training(folder):
    everything = blocks(write_folder(folder))
    parts = [source(folder, "train", 0), source(folder, "held_out", 1)]
    seen = [[block.tobytes() for block in part.host(0, len(part))] for part in parts]
    assert not set(seen[0]) & set(seen[1])
    assert sorted(seen[0] + seen[1]) == sorted(block.tobytes() for block in everything)


def test_order_is_a_pure_function_of_the_index(folder):
    write_folder(folder)
    n = len(source(folder))

    def order(seed, start=0, stop=n):
        return [block.tobytes() for block in source(folder, seed=seed).host(start, stop)]

    whole = order(0, 0, 3 * n)
    assert order(0, n - 2, n + 2) == whole[n - 2 : n + 2]
    epochs = [order(None), whole[:n], whole[n : 2 * n], whole[2 * n :], order(1)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert all(a != b for a, b in itertools.combinations(epochs, 2))
    assert order(None, n, 2 * n) == order(None)


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_named(folder, ending, dtype, value):
    rows = write_folder(folder, dtype, ending)
    # Behind the last block, too: a bad number says that something is wrong with the file.
    rows[1][5 * ROWS + 3, 2] = value
    write(folder / f"1{ending}", rows[1])
    message = rf"1\{ending} holds {value} at row {5 * ROWS + 3}, column 2: .* remove such rows"
    for split in ("train", "held_out"):
        with pytest.raises(BadInput, match=message):
            source(folder, split)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_number_that_float32_cannot_hold_is_infinite(folder):
    folder.mkdir()
    rows = random_rows(20 * ROWS, np.float64)
    rows[70, 1] = 1e300
    write(folder / "a.npy", rows)
    with pytest.raises(BadInput, match="holds inf at row 70, column 1"):
        source(folder)


def test_rows_are_counted_on_across_the_parts_that_a_shard_is_checked_in(folder):
    folder.mkdir()
    rows = np.ones((65536 + 64, 1), np.float16)
    rows[65536 + 9] = np.nan
    write(folder / "a.npy", rows)
    with pytest.raises(BadInput, match="at row 65545, column 0"):
        source(folder)


def test_finite_numbers_are_checked_once_and_again_when_a_file_changes(folder):
    rows = write_folder(folder)
    source(folder)
    path = folder / "2.npy"
    before = path.stat()
    rows[2][0, 0] = np.nan
    write(path, rows[2])
    # With the old time of writing, only a second look could tell: there is none.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    source(folder)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for _ in range(2):
        with pytest.raises(BadInput, match=r"2\.npy holds nan"):
            source(folder)


def test_fingerprint_follows_the_files_and_not_the_folder(folder):
    write_folder(folder)
    first = source(folder).fingerprint
    assert source(folder, "held_out", 3).fingerprint == first
    moved = folder.rename(folder.parent / "moved")
    assert source(moved).fingerprint == first
    write(moved / "3.npy", random_rows(ROWS, np.float32))
    assert source(moved).fingerprint != first


def bad(folder, message):
    with pytest.raises(BadInput, match=message):
        source(folder)


def test_a_folder_without_shards(folder, tmp_path):
    bad(folder, "shards holds no activations: give a folder of .npy or .safetensors files")
    folder.mkdir()
    bad(folder, "shards holds no activations: give a folder")
    (folder / "a.txt").write_text("1 2 3")
    bad(folder, "shards holds no activations: give a folder")
    bad(folder / "a.txt", "a.txt holds no activations: give a folder")


def test_shards_of_different_width(folder):
    write_folder(folder)
    write(folder / "3.npy", np.zeros((ROWS, WIDTH + 1), np.float32))
    bad(folder, f"3.npy has activations of width {WIDTH + 1}, but .*0.npy of width {WIDTH}: all")


@pytest.mark.parametrize("sizes", [[19 * ROWS + 63], [63] * 100, [ROWS] * 19, [0]], ids=str)
def test_too_few_rows(folder, sizes):
    folder.mkdir()
    for number, size in enumerate(sizes):
        write(folder / f"{number:03}.npy", np.zeros((size, WIDTH), np.float32))
    # All of them fill the training part, but nothing is held out.
    with pytest.raises(BadInput, match=f"holds {sum(sizes)} rows: .*{20 * ROWS}"):
        source(folder, "held_out")


NOT_ROWS = {
    "1-D": np.zeros(20 * ROWS, np.float32),
    "3-D": np.zeros((20, ROWS, 2), np.float32),
    "0-D": np.float32(1),
    "complex": np.zeros((20 * ROWS, 2), np.complex64),
    "text": np.full((20 * ROWS, 2), "1"),
    "bool": np.zeros((20 * ROWS, 2), bool),
    "records": np.zeros((20 * ROWS, 2), [("a", "f4")]),
}


@pytest.mark.parametrize("name", NOT_ROWS)
def test_npy_that_is_not_rows_of_numbers(folder, name):
    folder.mkdir()
    write(folder / "a.npy", NOT_ROWS[name])
    bad(folder, r"a\.npy has shape .*: activations are real numbers \[rows, d\]")


class Trap:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_refused_and_not_run(folder):
    folder.mkdir()
    trap = np.array([[Trap(str(folder / "sprung"))]], dtype=object)
    np.save(folder / "a.npy", trap, allow_pickle=True)
    bad(folder, r"a\.npy cannot be read")
    trap.dump(folder / "a.npy")
    bad(folder, r"a\.npy cannot be read")
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_a_file_that_is_cut_off(folder, ending):
    folder.mkdir()
    path = folder / f"a{ending}"
    write(path, random_rows(20 * ROWS, np.float32))
    whole = path.read_bytes()
    for size in [*range(0, 200, 7), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        bad(folder, rf"a\{ending} ")


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_a_file_of_something_else(folder, ending):
    folder.mkdir()
    path = folder / f"a{ending}"
    archive = folder / "a.npz"
    np.savez(archive, a=np.zeros((20 * ROWS, 2)))
    header = json.dumps({"a": [1]}).encode()
    contents = [b"text" * 100, b"\xff" * 100, b"\0" * 100, archive.read_bytes()]
    contents += [len(h).to_bytes(8, "little") + h for h in (header, b"[]", b"{}", b"{", b'"a"')]
    for content in contents:
        path.write_bytes(content)
        bad(folder, rf"a\{ending} ")
    path.unlink()
    path.mkdir()
    bad(folder, rf"a\{ending} ")


def test_safetensors_that_do_not_say_which_rows(folder):
    folder.mkdir()
    rows = np.zeros((20 * ROWS, 2), np.float32)
    path = folder / "a.safetensors"
    for tensors, message in [
        ({"a": rows, "b": rows}, r"holds 2 tensors \[rows, d\]: a shard holds exactly one"),
        ({"a": rows[:, 0]}, r"holds 0 tensors \[rows, d\]"),
        ({"a": rows.astype(np.int32)}, "is of type I32: allowed are F32, F16, F64, BF16"),
    ]:
        safetensors.numpy.save_file(tensors, path)
        bad(folder, message)
    # Tensors of other shapes may lie beside the rows, before them too.
    rows = random_rows(20 * ROWS, np.float32)
    safetensors.numpy.save_file({"a": np.ones(5, np.float16), "b": rows, "c": np.ones(3)}, path)
    np.testing.assert_array_equal(source(folder).host(0, 19).reshape(-1, WIDTH), rows[: 19 * ROWS])
