"""Files of torch.save: tensors come back as they were, and nothing in a file is run."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from jaxsae.errors import BadInput
from jaxsae.io import torch_files
from tests.torch_files import STORAGES, save


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_tensors_come_back_as_they_were_saved(tmp_path, dtype, compression):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x = (10 * np.random.default_rng(0).normal(size=(6, 5))).astype(dtype)
    value = {"whole": x, "rows": x[2:4], "transposed": x.T, "strided": x[::2, 1:], "none": np.zeros((0, 3), dtype)}
    save(tmp_path / "a.pt", value, compression)
    got = torch_files.load(tmp_path / "a.pt")
    assert list(got) == list(value)
    for name, want in value.items():
        assert got[name].dtype == dtype and not got[name].flags.writeable
        np.testing.assert_array_equal(got[name], want)


def test_containers_numbers_and_text_come_along(tmp_path):
    x = np.arange(3, dtype=np.float32)
    state = OrderedDict(a=x)
    state._metadata = {"version": 1}
    save(tmp_path / "a.pt", {"state": state, "config": {"k": 3, "names": ["x", None]}, "list": [x, (x, 2.5)]})
    got = torch_files.load(tmp_path / "a.pt")
    assert isinstance(got["state"], OrderedDict) and got["config"] == {"k": 3, "names": ["x", None]}
    assert got["list"][1][1] == 2.5
    assert list(torch_files.tensors(tmp_path / "a.pt")) == ["state.a", "list.0", "list.1.0"]
    save(tmp_path / "b.pt", x)
    np.testing.assert_array_equal(torch_files.tensors(tmp_path / "b.pt")[""], x)


def test_what_torch_wrote(shared):
    """encoder.weight is stored transposed: [n, d] by strides, and d x n numbers in the order of the columns."""
    path = shared("fixtures/peers/dictionary_learning/topk/trainer_0/ae.pt")
    got = torch_files.tensors(path)
    assert {name: x.shape for name, x in got.items()} == {
        "b_dec": (24,),
        "k": (),
        "threshold": (),
        "decoder.weight": (24, 96),
        "encoder.weight": (96, 24),
        "encoder.bias": (96,),
    }
    with zipfile.ZipFile(path) as archive:
        stored = np.frombuffer(archive.read("ae/data/4"), np.float32)
    np.testing.assert_array_equal(got["encoder.weight"], stored.reshape(24, 96).T)
    assert got["k"] == 5


class Call:
    """A pickle of this calls a function with arguments when it is loaded."""

    def __init__(self, function, *arguments, state=None):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call


def hostile(path, data: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


def test_no_code_is_run(tmp_path):
    sprung = tmp_path / "sprung"
    for protocol in range(2, 6):
        for call in (Call(os.mkdir, str(sprung)), Call(eval, f"open({str(sprung)!r}, 'w')"), Call(getattr, "", "join")):
            path = hostile(tmp_path / "a.pt", pickle.dumps({"x": [call]}, protocol))
            with pytest.raises(
                BadInput, match=r"a\.pt holds (posix\.mkdir|(builtins|__builtin__)\.(eval|getattr)), which is not read"
            ):
                torch_files.load(path)
    assert not sprung.exists()


def test_names_beside_the_allowed_ones_are_refused(tmp_path):
    for module, name in [
        ("torch._utils", "_rebuild_tensor"),
        ("torch", "load"),
        ("torch.nn.modules.linear", "Linear"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "namedtuple"),
        ("jaxsae.io.torch_files", "os"),
        ("numpy", "fromfile"),
    ]:
        # STACK_GLOBAL, the form that may have dots in its names.
        text = lambda word: b"X" + len(word).to_bytes(4, "little") + word.encode()
        path = hostile(tmp_path / "a.pt", b"\x80\x04" + text(module) + text(name) + b"\x93.")
        with pytest.raises(BadInput, match=re.escape(f"holds {module}.{name}, which is not read")):
            torch_files.load(path)


def test_a_pickle_cannot_change_what_reads_the_next_one(tmp_path):
    """BUILD sets attributes of what was named before: of functions that only this pickle has."""
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b."
    with pytest.raises(BadInput, match="cannot be read"):
        torch_files.load(hostile(tmp_path / "a.pt", data))
    named = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00evilK\x01sb."
    torch_files.load(hostile(tmp_path / "b.pt", named))
    assert not hasattr(torch_files._rebuild, "evil")


@pytest.mark.parametrize(
    "offset, size, stride",
    [(0, (7,), (1,)), (-1, (2,), (1,)), (4, (2, 2), (1, 1)), (0, (2,), (-1,)), (0, (-1,), (1,)), (0, (2, 2), (1,))],
)
def test_tensors_beyond_their_storage_are_refused(offset, size, stride):
    storage = torch_files._Storage(np.float32, np.zeros(24, np.uint8))
    with pytest.raises((ValueError, TypeError)):
        torch_files._rebuild(storage, offset, size, stride)


def test_what_is_no_whole_file_of_torch_save(tmp_path):
    path = tmp_path / "a.pt"
    save(path, np.zeros((50, 3), np.float32))
    whole = path.read_bytes()
    contents = [b"", b"text", pickle.dumps({"a": 1}), *(whole[:size] for size in range(0, len(whole), 97))]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"a\.pt cannot be read as a file of torch\.save \(1\.6 or later\)"):
            torch_files.load(path)
    with pytest.raises(BadInput, match="cannot be read"):
        torch_files.load(hostile(path, b"\x80\x02."))
    save(path, np.zeros(3, np.float32), byteorder="big")
    with pytest.raises(BadInput, match="saved on a big-endian machine"):
        torch_files.load(path)
