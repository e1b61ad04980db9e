"""Shards of activations: the rows that were written come back; a bad shard is one BadInput."""

import itertools
import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxsae.data.activations import ActivationBatches, BufferPlan
from jaxsae.data.arrays.opened import open_files
from jaxsae.data.files import ROWS, FileSource
from jaxsae.data.scan import lower_median
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput

WIDTH = 6
# 13, 6 and 3 blocks: the twentieth that is held out is the last one of the last shard.
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


def source(folder, split="train", seed=None, held_out=None, max_norm=None, **skips):
    files = open_files(str(folder), held_out and str(held_out), max_norm, folder.parent / "cache")
    return FileSource(files, split, seed, **skips)


def blocks(rows, size=ROWS):
    """The blocks of shards, in order; a shard's last one is filled up with rows of NaN."""
    fill = lambda block: np.concatenate([block, np.full((size - len(block), block.shape[1]), np.nan, np.float32)])
    return [fill(shard[i : i + size].astype(np.float32)) for shard in rows for i in range(0, len(shard), size)]


def rows_of(source):
    """The rows of a source that count, and how many it says there are."""
    host = source.host(0, len(source))
    kept = np.asarray(source.kept(host))
    (x,) = source.activations(host)
    np.testing.assert_array_equal(np.isnan(host).any(-1)[:, source.first :], ~kept[:, source.first :])
    np.testing.assert_array_equal(x, np.nan_to_num(host))
    assert source.count == kept.sum() and source.masked == (not kept[:, source.first :].all())
    return host[kept]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_rows_come_back_as_written(folder, dtype, ending):
    want = np.array(blocks(write_folder(folder, dtype, ending)))
    train, held_out = source(folder), source(folder, "held_out")
    assert train.width == WIDTH and train.rows == ROWS and train.shape == (ROWS, WIDTH)
    got = train.host(0, len(train))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want[:-1])
    np.testing.assert_array_equal(held_out.host(0, len(held_out)), want[-1:])


@pytest.mark.parametrize("sizes", [[100] * 30, [63] * 41, [1000], [65], SIZES], ids=lambda s: f"{len(s)}x{s[0]}")
def test_rows_after_the_last_whole_block_are_used(folder, sizes):
    folder.mkdir()
    shards = [random_rows(size, np.float32, seed) for seed, size in enumerate(sizes)]
    for number, shard in enumerate(shards):
        write(folder / f"{number:03}.npy", shard)
    parts = [rows_of(source(folder, split)) for split in ("train", "held_out", "all")]
    np.testing.assert_array_equal(parts[2], np.concatenate(shards))
    assert sum(map(len, parts[:2])) == sum(sizes) and len(parts[1])
    assert {row.tobytes() for row in np.concatenate(parts[:2])} == {row.tobytes() for row in parts[2]}


def test_held_out_blocks_are_no_neighbours_of_training_blocks(folder):
    """The end of each shard is held out, a twentieth: one place in a shard has both parts beside it, not every one."""
    folder.mkdir()
    sizes = [100 * ROWS, 40 * ROWS + 5, 7 * ROWS]
    for number, size in enumerate(sizes):
        write(folder / f"{number}.npy", np.arange(size, dtype=np.float32)[:, None] + 1000_000 * number)
    held = rows_of(source(folder, "held_out"))[:, 0]
    want = [(size - held * ROWS, size) for size, held in ((sizes[0], 5), (sizes[2], 0))]
    # Blocks 100 + 41 + 7: a twentieth of those that end with each shard are 5, 7 and 7.
    ends = [np.arange(*want[0]), 1000_000 + np.arange(sizes[1] - ROWS - 5, sizes[1])]
    np.testing.assert_array_equal(held, np.concatenate(ends))


def test_a_folder_of_its_own_is_held_out(folder):
    rows = write_folder(folder)
    apart = folder / "test"
    apart.mkdir()
    other = random_rows(70, np.float32, 9)
    write(apart / "0.npy", other)
    np.testing.assert_array_equal(rows_of(source(folder, held_out=apart)), np.concatenate(rows))
    np.testing.assert_array_equal(rows_of(source(folder, "held_out", held_out=apart)), other)
    with pytest.raises(BadInput, match="nowhere holds no activations"):
        source(folder, held_out=folder / "nowhere")


def test_zero_and_outlier_rows_are_counted_and_left_out_by_max_norm(folder):
    folder.mkdir()
    rows = random_rows(2 * ROWS, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[3], rows[[5, 127]], rows[7] = 0, 100 * rows[[5, 127]], 3 * rows[7]
    write(folder / "a.npy", rows)
    counted = source(folder).files
    facts = counted.facts
    assert {name: facts[name] for name in ("rows", "zero_rows", "outlier_rows", "outlier_norm")} == {
        "rows": 128,
        "zero_rows": 1,
        "outlier_rows": 2,
        "outlier_norm": 10.0,
    }
    norms = np.sort(np.linalg.norm(rows.astype(np.float64), axis=1))[1:]
    assert facts["median_norm"] == pytest.approx(norms[(len(norms) - 1) // 2], rel=1e-7)
    assert facts["largest_norm"] == pytest.approx(100, rel=1e-6)
    assert "128 rows" in counted.summary() and "1 rows are zeros, 2 above 10 times" in counted.summary()
    # Nothing is left out before it is asked for.
    np.testing.assert_array_equal(rows_of(source(folder, "all")), rows)
    np.testing.assert_array_equal(rows_of(source(folder, max_norm=10.0)), np.delete(rows[:ROWS], [3, 5], axis=0))
    np.testing.assert_array_equal(rows_of(source(folder, "held_out", max_norm=10.0)), rows[ROWS:-1])
    strict = source(folder, "all", max_norm=2.0)
    assert strict.files.facts["outlier_rows"] == 3
    np.testing.assert_array_equal(rows_of(strict), np.delete(rows, [3, 5, 7, 127], axis=0))


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_median_norm_is_exact(size):
    numbers = np.exp(3 * np.random.default_rng(size).normal(size=size)).astype(np.float32)
    zeros = np.zeros(size, np.float32)
    assert lower_median([numbers[::2], zeros, numbers[1::2]]) == np.sort(numbers)[(size - 1) // 2]
    assert lower_median([zeros]) == 0


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.uint16, ">f4", "F"])
def test_other_numbers_and_orders_of_numbers(folder, dtype):
    folder.mkdir()
    rows = (100 * random_rows(20 * ROWS, np.float64)).astype(np.uint8)
    rows = np.asfortranarray(rows.astype(np.float32)) if dtype == "F" else rows.astype(dtype)
    np.save(folder / "a.npy", rows)
    np.testing.assert_array_equal(rows_of(source(folder, "all")), rows)


def test_shards_of_a_folder_may_differ_in_kind(folder):
    # 11 blocks each, in alphabetical order; what is neither .npy nor .safetensors is no shard.
    rows = [random_rows(11 * ROWS, dtype, seed) for seed, dtype in enumerate(DTYPES)]
    folder.mkdir()
    for name, shard in zip(["b.safetensors", "a.npy", "c.safetensors"], rows, strict=True):
        write(folder / name, shard)
    (folder / "config.json").write_text("{}")
    ordered = [rows[1], rows[0], rows[2]]
    np.testing.assert_array_equal(rows_of(source(folder, "all")), np.concatenate([x.astype("f4") for x in ordered]))


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


def test_fingerprint_follows_what_the_files_hold_and_neither_names_nor_times(folder, tmp_path):
    rows = write_folder(folder)
    first = source(folder).fingerprint
    assert source(folder, "held_out", 3).fingerprint == first
    moved = folder.rename(tmp_path / "moved")
    for path in moved.iterdir():
        os.utime(path, ns=(1, 1))
        path.rename(moved / f"part-{path.name}")
    assert source(moved).fingerprint == first
    # One bit of one row is another fingerprint, and so are other rows and the same bytes in another shape.
    path = moved / "part-1.npy"
    for changed in (rows[1] + np.eye(*rows[1].shape, dtype=np.float32), rows[1][:-1], rows[1].reshape(-1, 1, WIDTH)):
        write(path, changed)
        if changed.ndim == 2:
            assert source(moved).fingerprint != first
    write(path, rows[1])
    assert source(moved).fingerprint == first
    write(moved / "part-3.npy", random_rows(ROWS, np.float32))
    assert source(moved).fingerprint != first


def test_a_second_start_reads_no_activations(folder, monkeypatch):
    write_folder(folder)
    first = source(folder)
    monkeypatch.setattr("jaxsae.data.scan._parts", lambda *_: iter([(0, np.float32([1.0]))]))
    assert source(folder).fingerprint == first.fingerprint


def test_the_same_bytes_in_another_shape_have_norms_of_their_own(folder):
    folder.mkdir()
    rows = random_rows(100, np.float32)
    for name, shape in (("a", (-1, 6)), ("b", (-1, 3))):
        (folder / name).mkdir()
        write(folder / name / "0.npy", rows.reshape(shape))
        (norms,) = source(folder / name, "all").files.norms[0].of
        np.testing.assert_allclose(norms, np.linalg.norm(rows.reshape(shape), axis=1), rtol=1e-6)


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


@pytest.mark.parametrize("sizes", [[64], [63], [0], [0, 1]], ids=str)
def test_too_few_rows(folder, sizes):
    folder.mkdir()
    for number, size in enumerate(sizes):
        write(folder / f"{number:03}.npy", np.zeros((size, WIDTH), np.float32))
    # All of them fill the training part, but nothing is held out.
    with pytest.raises(BadInput, match=f"holds {sum(sizes)} rows, and its held_out part is empty: give at least two"):
        source(folder, "held_out")


NOT_ROWS = {
    "1-D": np.zeros(20 * ROWS, np.float32),
    "4-D": np.zeros((5, 4, ROWS, 2), np.float32),
    "0-D": np.float32(1),
    "complex": np.zeros((20 * ROWS, 2), np.complex64),
    "text": np.full((20 * ROWS, 2), "1"),
    "bool": np.zeros((20 * ROWS, 2), bool),
    "no width": np.zeros((20 * ROWS, 0), np.float32),
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
        ({"a": rows, "b": rows}, r"holds 2 arrays of .*, a, b: choose one by --activations DIR#KEY"),
        ({"a": rows[:, 0]}, r"holds 0 arrays of floating-point numbers \[rows, d\]"),
        ({"a": rows.astype(np.int32)}, "holds 0 arrays of floating-point numbers"),
    ]:
        safetensors.numpy.save_file(tensors, path)
        bad(folder, message)
    # Tensors of other shapes may lie beside the rows, before them too.
    rows = random_rows(20 * ROWS, np.float32)
    safetensors.numpy.save_file({"a": np.ones(5, np.float16), "b": rows, "c": np.ones(3)}, path)
    np.testing.assert_array_equal(rows_of(source(folder, "all")), rows)


def test_batches_hold_the_rows_that_count_and_no_others(folder):
    """Short blocks, zeros and outliers are filled up by other rows of the same data."""
    folder.mkdir()
    sizes = [100, 63, 200, 40]
    shards = [random_rows(size, np.float32, seed) for seed, size in enumerate(sizes)]
    for number, shard in enumerate(shards):
        shard[5], shard[9] = 0, 1000 * shard[9]
        write(folder / f"{number}.npy", shard)
    train = source(folder, seed=0, max_norm=50.0)
    plan = BufferPlan.of(32, train.count / len(train), 1, 4)
    batches = ActivationBatches(train, plan, make_mesh(1, 1), 0)
    rows = np.concatenate([np.asarray(batches.chunk(number)[0]).reshape(-1, WIDTH) for number in range(10)])
    seen, want = ({row.tobytes() for row in part} for part in (rows, rows_of(source(folder, max_norm=50.0))))
    assert len(rows) == 10 * 4 * 32 and seen <= want and len(seen) > 0.8 * len(want)


def test_what_should_come_out_stands_beside_what_goes_in(folder):
    """Of a transcoder; a row counts if both arrays' norms are within --max-norm."""
    folder.mkdir()
    rows = random_rows(2 * ROWS, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    out = 7 * rows[:, :4] / np.linalg.norm(rows[:, :4], axis=1, keepdims=True)
    rows[3] *= 100
    out[[5, 9]] *= [[50], [0]]
    np.savez(folder / "a.npz", x=rows, y=out)
    pair = FileSource(open_files(f"{folder}#x", None, 10.0, folder.parent / "cache", "y"), "train", None)
    host = pair.host(0, 1)
    kept = np.asarray(pair.kept(host))
    assert np.flatnonzero(~kept[0]).tolist() == [3, 5, 9] and (pair.width, pair.count) == (WIDTH, ROWS - 3)
    for got, written in zip(pair.activations(host), (rows, out), strict=True):
        np.testing.assert_array_equal(got[kept], np.delete(written[:ROWS], [3, 5, 9], axis=0))
    assert pair.files.facts["out"]["median_norm"] == pytest.approx(7) and pair.files.width_out == 4
    assert "y: 128 rows of width 4" in pair.files.summary()
    # Of two arrays the other one is read.
    assert open_files(str(folder), None, None, folder.parent / "cache", "y").shards[0].tensor == "x"


@pytest.mark.parametrize(
    "key, out, said",
    [
        ("x", "z", r"--hook-out is z, which .*a\.npz does not hold: it holds x, y, few"),
        ("x", "few", r"holds x \[128, 6\] and few \[5, 6\]: a transcoder reads and makes activations of the same rows"),
        ("x", "x", r"--hook-out is x, which is what --activations .*#x reads: name another array"),
    ],
)
def test_arrays_that_are_no_pair(folder, key, out, said):
    folder.mkdir()
    rows = random_rows(2 * ROWS, np.float32)
    np.savez(folder / "a.npz", x=rows, y=rows, few=rows[:5])
    with pytest.raises(BadInput, match=said):
        open_files(f"{folder}#{key}", None, None, folder.parent / "cache", out)
