"""Every way to name a text gives its documents, or one BadInput that names the source."""

import csv
import gzip
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxsae.data import tables as source_tables
from jaxsae.data import text
from jaxsae.data.records import Chat
from jaxsae.errors import BadInput

# Each ends its last line, as the documents of a .txt file between marker lines do. Inside a line
# the marker is text, and of the characters that some readers take for line breaks only \n is one.
DOCUMENTS = [
    "one line\n",
    "two lines\n\nand \u2028 a \x0b paragraph\x85\n",
    "an <|endoftext|> inside\n",
    '{"text": "no object of ours"}\n',
    "\n  indented, äöü, 漢字, 🦊\n",
]


def as_txt(documents):
    return "<|endoftext|>\n".join(documents).encode()


def as_jsonl(documents):
    # Blank lines are allowed, other fields too.
    lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)]
    return "\n".join(lines).encode()


def as_tar(members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def as_zip(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("folder")
        for name, content in members.items():
            archive.writestr(f"folder/{name}", content)
    return file.getvalue()


def as_json(documents):
    return json.dumps([{"id": i, "text": text} for i, text in enumerate(documents)]).encode()


def as_csv(documents):
    file = io.StringIO(newline="")
    rows = csv.writer(file)
    rows.writerows([["id", "text"], *enumerate(documents)])
    return file.getvalue().encode()


def as_parquet(documents, ids=None):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"id": range(len(documents)), "text": documents}), file, row_group_size=2)
    return file.getvalue()


def as_arrow(documents, kind="stream"):
    pyarrow = pytest.importorskip("pyarrow")
    file, table = io.BytesIO(), pyarrow.table({"id": range(len(documents)), "text": documents})
    with getattr(pyarrow.ipc, f"new_{kind}")(file, table.schema) as writer:
        writer.write_table(table, 2)
    return file.getvalue()


def zstd(content):
    zstandard = pytest.importorskip("zstandard")
    half = len(content) // 2
    # Two frames, the second without its length.
    second = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True)
    return zstandard.ZstdCompressor(write_checksum=True).compress(content[:half]) + second.compress(content[half:])


def plain(documents=DOCUMENTS):
    return {"a.txt": as_txt(documents), "a.jsonl": as_jsonl(documents)}


def tables(documents=DOCUMENTS):
    files = {"a.json": as_json(documents), "a.csv": as_csv(documents), "strings.json": json.dumps(documents).encode()}
    files |= {"a.parquet": as_parquet(documents), "a.arrow": as_arrow(documents)}
    files |= {"file.arrow": as_arrow(documents, "file"), "a.parquet.zst": zstd(as_parquet(documents))}
    return files | {"a.json.gz": gzip.compress(files["a.json"]), "a.csv.xz": lzma.compress(files["a.csv"])}


def compressed(documents=DOCUMENTS):
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}
    files = plain(documents).items()
    return {name + end: how(content) for name, content in files for end, how in pack.items()}


def archives(documents=DOCUMENTS):
    """The documents in two members each, the second compressed on its own."""
    members = {"a.txt": as_txt(documents[:2]), "b.jsonl.gz": gzip.compress(as_jsonl(documents[2:]))}
    modes = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tgz": "w:gz", "a.tar.xz": "w:xz"}
    tars = {name: as_tar(members, mode) for name, mode in modes.items()}
    return {**tars, "a.tar.zst": zstd(as_tar(members)), "a.zip": as_zip(members)}


FORMATS = {**plain(), **tables(), **compressed(), **archives()}


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return str(path)


def read(*sources):
    return list(text.documents(sources))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    assert read(write(tmp_path, name, FORMATS[name])) == DOCUMENTS


def test_documents_without_text_are_left_out(tmp_path):
    documents = ["", "a\n", " \n\t\n", "b\n", ""]
    for name, content in plain(documents).items():
        assert read(write(tmp_path, name, content)) == ["a\n", "b\n"]


def test_a_marker_line_may_carry_spaces_and_other_line_ends(tmp_path):
    path = write(tmp_path, "a.txt", b"a\r\n  <|endoftext|> \r\nb")
    assert read(path) == ["a\n", "b"]


def test_globs_in_sorted_order_and_sources_in_theirs(tmp_path):
    names = ["c.txt", "a.txt", "b.txt.gz"]
    for name in names:
        content = name.encode()
        write(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    (tmp_path / "deep").mkdir()
    write(tmp_path, "deep/z.txt", b"deep/z.txt")
    # A folder that a glob matches is no text, whatever it is called.
    (tmp_path / "d.txt").mkdir()
    star, deep = f"{tmp_path}/*.txt*", f"{tmp_path}/**/*.txt"
    assert read(star) == sorted(names)
    assert read(deep) == ["a.txt", "c.txt", "deep/z.txt"]
    assert read(deep, star, f"{tmp_path}/c.txt") == read(deep) + read(star) + ["c.txt"]


def test_a_folder_is_its_files_of_known_endings_in_the_order_of_their_names(tmp_path):
    for name in (
        "b/c.txt",
        "b.jsonl",
        "a.txt.gz",
        "c.parquet",
        ".git/x.txt",
        "b/.hidden.txt",
        "README.md",
        "model.bin",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = as_parquet([name]) if name.endswith("parquet") else name.encode()
        content = as_jsonl([name]) if name.endswith("jsonl") else content
        write(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content)
    assert read(str(tmp_path)) == read(f"{tmp_path}/") == ["a.txt.gz", "b.jsonl", "b/c.txt", "c.parquet"]


def test_a_folder_that_save_to_disk_wrote_is_read_in_its_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": DOCUMENTS, "other": DOCUMENTS[::-1]})
    data.save_to_disk(tmp_path / "one", num_shards=3)
    assert read(str(tmp_path / "one")) == read(f"hf:{tmp_path}/one") == DOCUMENTS
    assert read(f"{tmp_path}/one#other") == DOCUMENTS[::-1]
    datasets.DatasetDict(test=data.select([0]), train=data).save_to_disk(tmp_path / "two")
    assert read(str(tmp_path / "two")) == read(f"hf:{tmp_path}/two") == DOCUMENTS
    assert read(f"{tmp_path}/two/test") == read(f"hf:{tmp_path}/two:test") == DOCUMENTS[:1]
    datasets.DatasetDict(a=data, b=data).save_to_disk(tmp_path / "three")
    with pytest.raises(BadInput, match=r"holds the data sets a, b: give .*three/a or another"):
        read(str(tmp_path / "three"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz"])
def test_a_column_is_named_and_a_missing_one_is_refused_with_those_that_are_there(tmp_path, name):
    path = write(tmp_path, name, FORMATS[name])
    assert read(f"{path}#text") == DOCUMENTS
    with pytest.raises(BadInput, match=f'{name} has no column "body", only id, text: name the one to read as #COLUMN'):
        read(f"{path}#body")
    # A file may be called so, too.
    strange = write(tmp_path, f"x#body{name[1:]}", FORMATS[name])
    assert read(strange) == DOCUMENTS


SOURCES = {
    "hf:name": ("hf", "name", None, "train", None),
    "hf:owner/name": ("hf", "owner/name", None, "train", None),
    "hf:owner/name/config": ("hf", "owner/name", "config", "train", None),
    "hf:owner/name/config:test[:5]#body": ("hf", "owner/name", "config", "test[:5]", "body"),
    "hf:owner/name:test": ("hf", "owner/name", None, "test", None),
    "hf:owner/name#a:b": ("hf", "owner/name", None, "train", "a:b"),
    "tfds:wiki/en:test#body": ("tfds", "wiki/en", None, "test", "body"),
    "a/*.jsonl#body": ("files", "a/*.jsonl", None, "train", "body"),
    "a#b/c.txt#body": ("files", "a#b/c.txt", None, "train", "body"),
    "http:x": ("files", "http:x", None, "train", None),
    "stdlib": ("stdlib", "stdlib", None, "train", None),
}


@pytest.mark.parametrize("source", SOURCES)
def test_names_of_sources_have_these_parts(source):
    assert text.parse(source) == text.Named(*SOURCES[source])
    assert text.parse(f"tokens:{source}") == text.Named(*SOURCES[source], ids=True)


def test_bad_documents_leave_the_others(tmp_path):
    bad = []
    lines = as_jsonl(DOCUMENTS[:2]) + b'[]\n{"text": "\xff"}\n' + as_jsonl(DOCUMENTS[2:])
    paths = [
        write(tmp_path, "a.jsonl", lines),
        write(tmp_path, "b.txt", b"good\n<|endoftext|>\n\xff\n<|endoftext|>\nbetter"),
        write(tmp_path, "c.txt.gz", gzip.compress(b"one\n<|endoftext|>\n" + bytes(range(128)) * 999)[:-8]),
        write(tmp_path, "d.txt", b"last"),
    ]
    got = list(text.documents(paths, bad.append))
    assert got[:7] == [*DOCUMENTS, "good\n", "better"] and got[7] == "one\n" and got[-1] == "last"
    places = [
        "a.jsonl, line 4: every line",
        "a.jsonl, line 5, is not UTF-8",
        "b.txt, document 2, is not UTF-8",
        "c.txt.gz",
    ]
    assert len(bad) == 4 and all(place in reason for place, reason in zip(places, bad))
    with pytest.raises(BadInput, match=r"holds no document that can be read: .*not UTF-8"):
        list(text.documents([write(tmp_path, "e.txt", b"\xff")], bad.append))


CHAT = [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_columns_of_chats_are_rendered(tmp_path, name):
    if name == "a.jsonl":
        content = "\n".join(json.dumps({"messages": chat}) for chat in (CHAT, CHAT[:1])).encode()
    else:
        pyarrow, file = pytest.importorskip("pyarrow"), io.BytesIO()
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"messages": [CHAT, CHAT[:1]]}), file)
        content = file.getvalue()
    source = write(tmp_path, name, content) + "#messages"
    render = lambda chat: "|".join(f"{m['role']}:{m['content']}" for m in chat)
    got = list(text.documents([source], render=render))
    assert got == ["user:a|bot:b", "user:a"] and all(isinstance(document, Chat) for document in got)

    def refuse(chat):
        raise ValueError("no such role")

    with pytest.raises(BadInput, match=f"{name}, (line|row) 1: no such role"):
        list(text.documents([source], render=refuse))


def test_token_ids_are_read_from_tables(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [[1, 2, 3], [4], [5, 6]]
    parquet.write_table(pyarrow.table({"input_ids": rows, "other": [[7], [8], [9]]}), tmp_path / "a.parquet")
    write(tmp_path, "a.jsonl", b'{"tokens": [1, 2, 3]}\n[4]\n{"tokens": [5, 6]}')
    write(tmp_path, "a.json", json.dumps(rows).encode())
    for name in ("a.parquet", "a.jsonl", "a.json"):
        got = list(text.documents([f"tokens:{tmp_path}/{name}"], vocab_size=10))
        assert [row.tolist() for row in got] == rows and got[0].dtype == np.int32
    got = text.documents([f"tokens:{tmp_path}/a.parquet#other"], vocab_size=10)
    assert [row.tolist() for row in got] == [[7], [8], [9]]
    for content in ('{"tokens": "a"}', '{"tokens": [1.5]}', '{"tokens": [[1], [2, 3]]}', '["a"]', "3"):
        path = write(tmp_path, "b.jsonl", b'{"tokens": [1]}\n' + content.encode())
        with pytest.raises(BadInput, match=r"b\.jsonl, line 2: .* that is a list of token ids"):
            list(text.documents([f"tokens:{path}"], vocab_size=10))
    for name, content in (("a.txt", b"text"), ("a.csv", b"text\na")):
        with pytest.raises(BadInput, match=r"no known format: allowed are \.npy"):
            list(text.documents([f"tokens:{write(tmp_path, name, content)}"], vocab_size=10))
    np.save(tmp_path / "a.npy", np.zeros(3, int))
    with pytest.raises(BadInput, match=r"a\.npy holds numbers: give it as tokens:"):
        read(f"{tmp_path}/a.npy")


def test_a_stream_that_breaks_goes_on_at_the_row_where_it_broke(monkeypatch, capsys):
    waits, starts = [], []
    monkeypatch.setattr(source_tables.time, "sleep", waits.append)

    def open_at(start):
        starts.append(start)
        for row in range(start, 10):
            if row in (4, 7) and starts.count(row) < 3:
                raise ConnectionError("gone\nfor now")
            yield row

    assert list(source_tables.resumed(open_at, "hf:name")) == list(range(10))
    assert starts == [0, 4, 4, 4, 7, 7, 7] and waits == [1, 4, 15, 1, 4, 15]
    assert "hf:name broke at row 5 (ConnectionError: gone); again in 1 s" in capsys.readouterr().err

    def always(start):
        yield from range(start, 3)
        raise ConnectionError("gone")

    rows = source_tables.resumed(always, "hf:name")
    assert [next(rows) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadInput, match=r"hf:name broke at row 4 again and again .*start the same command again"):
        next(rows)


class Breaking:
    """A data set of the hub whose stream breaks once, after three rows."""

    broke = False

    def __init__(self, start=0):
        self.start = start

    def skip(self, count):
        return Breaking(count)

    def __iter__(self):
        for row in range(self.start, 6):
            if row == 3 and not Breaking.broke:
                Breaking.broke = True
                raise OSError("the network is gone")
            yield {"id": row, "body": f"text {row}" if row != 4 else None}


def test_a_data_set_of_the_hub_with_a_configuration_and_a_column_goes_on_where_it_broke(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(source_tables, "WAITS", (0,))
    monkeypatch.setattr(Breaking, "broke", False)
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or Breaking())
    bad, source = [], "hf:owner/name/config:test#body"
    assert list(text.documents([source], bad.append)) == ["text 0", "text 1", "text 2", "text 3", "text 5"]
    assert Breaking.broke and bad == [f'{source}, row 5: every row must have a column "body" that is a string']
    assert calls == [(("owner/name", "config"), {"split": "test", "streaming": True})] * 3
    with pytest.raises(BadInput, match='hf:owner/name has no column "text", only id, body'):
        read("hf:owner/name")


def test_the_name_of_a_file_is_no_pattern(tmp_path):
    assert read(write(tmp_path, "part[1]*.txt", b"a")) == ["a"]


def test_stdlib_is_the_source_of_the_standard_library_without_tests():
    paths = text.stdlib_files()
    assert paths == text.stdlib_files()
    root = Path(json.__file__).parents[1]
    names = [path.relative_to(root).as_posix() for path in paths]
    assert len(names) > 500 and {"json/decoder.py", "tarfile.py", "asyncio/tasks.py"} <= set(names)
    assert names == sorted(names) and len(set(names)) == len(names)
    unwanted = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert not any(unwanted & set(name.split("/")) for name in names)
    documents = read("stdlib")
    assert len(documents) > 500 and sum(map(len, documents)) > 1e7
    assert Path(json.__file__).read_text() in documents


def test_stdlib_may_lie_below_any_folder(tmp_path, monkeypatch):
    # Folders called test or site-packages above the library say nothing about its files.
    root = tmp_path / "test" / "site-packages" / "lib"
    (root / "test").mkdir(parents=True)
    (root / "os.py").write_text("system")
    (root / "test" / "check.py").write_text("a test")
    monkeypatch.setattr(text.sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    assert text.stdlib_files() == [root / "os.py"]


def test_fingerprint_follows_the_bytes_and_not_the_folder(tmp_path):
    def fingerprint(folder, content=b"abc", other=b"xyz"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path, f"{folder}/a.txt", content)
        write(tmp_path, f"{folder}/b.txt", other)
        return text.fingerprint([f"{tmp_path / folder}/*.txt"])

    same = fingerprint("here")
    assert fingerprint("there") == same
    # Nor the names, as far as the order and the endings are the same.
    for old, new in (("a.txt", "c.txt"), ("b.txt", "d.txt")):
        (tmp_path / "there" / old).rename(tmp_path / "there" / new)
    assert text.fingerprint([f"{tmp_path}/there/*.txt"]) == same
    different = [
        fingerprint("here", b"abd"),
        fingerprint("here", b"abc\n"),
        fingerprint("here", b"abcx", b"yz"),
        fingerprint("here", b"xyz", b"abc"),
        text.fingerprint([f"{tmp_path}/there/c.txt"]),
        text.fingerprint([f"{tmp_path}/here/*.txt#column"]),
        text.fingerprint(["tfds:lm1b"]),
        text.fingerprint(["tfds:lm1b:test"]),
        text.fingerprint(["hf:lm1b"]),
    ]
    assert len({same, *different}) == 1 + len(different)
    assert text.fingerprint(["tfds:lm1b"]) == text.fingerprint(["tfds:lm1b"])


def test_fingerprint_of_a_local_data_set_follows_its_files(tmp_path):
    write(tmp_path, "train.jsonl", as_jsonl(["a"]))
    before = text.fingerprint([f"hf:{tmp_path}"])
    write(tmp_path, "train.jsonl", as_jsonl(["b"]))
    assert text.fingerprint([f"hf:{tmp_path}"]) != before


BAD = {
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b" \n<|endoftext|>\n\n", "holds no text"),
    "empty.jsonl": (b"", "holds no text"),
    "empty.tar": (as_tar({}), "holds no text"),
    "empty.zip": (as_zip({}), "holds no text"),
    "page.html": (b"<p>", "no known format: allowed are"),
    "noending": (b"text", "no known format: allowed are"),
    "members.tar": (as_tar({"a.bin": b"x"}), "a.bin is of no known format"),
    "members.zip": (as_zip({"a.bin": b"x"}), "a.bin is of no known format"),
    "latin.txt": ("a" * 10_000 + "ä").encode("latin-1"),
    "latin.txt.gz": gzip.compress("ä".encode("latin-1")),
    "latin.jsonl": '{"text": "ä"}'.encode("latin-1"),
    "latin.zip": as_zip({"a.txt": b"\xff"}),
    "notgzip.txt.gz": (b"text", "cannot be read, give a whole file"),
    "notxz.txt.xz": (b"text", "cannot be read, give a whole file"),
    "notzip.zip": (b"text", "cannot be read, give a whole file"),
    "nottar.tar": (b"text" * 1000, "cannot be read, give a whole file"),
    "notgzip.tar.gz": (as_tar(plain()), "cannot be read, give a whole file"),
}
LINES = ["[]", '["text"]', '"text"', "1", "null", "{}", '{"words": "a"}', '{"text"', "text"]
LINES += ['{"text": null}', '{"text": 5}', '{"text": ["a"]}', '{"text": "\\ud800"}']


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_error(tmp_path, name):
    content, message = BAD[name] if isinstance(BAD[name], tuple) else (BAD[name], "not UTF-8 text")
    with pytest.raises(BadInput) as caught:
        read(write(tmp_path, name, content))
    assert name in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("line", LINES)
def test_a_bad_line_is_named(tmp_path, line):
    path = write(tmp_path, "a.jsonl", b'{"text": "good"}\n\n' + line.encode())
    with pytest.raises(BadInput, match=r'a\.jsonl, line 3: .*with a field "text" that is a string'):
        read(path)


def test_a_source_that_matches_no_file(tmp_path):
    below = [f"{tmp_path}{end}" for end in ("/a.txt", "/*.jsonl", "", "/")]
    for source in (*below, "", "stdlibs"):
        for use in (read, lambda source: text.fingerprint([source])):
            with pytest.raises(BadInput) as caught:
                use(source)
            assert f"{source!r} matches no file: allowed are stdlib" in str(caught.value)


def test_one_source_without_text_among_others(tmp_path):
    good, empty = write(tmp_path, "good.txt", b"a"), write(tmp_path, "empty.txt", b"")
    with pytest.raises(BadInput, match=r"empty\.txt.* holds no text: give a source"):
        read(good, empty, good)


def read_or_bad(path):
    try:
        return read(path)
    except BadInput as error:
        # The error that says that nothing came out names the source, the others the file.
        assert path in str(error)
        return BadInput


SEALED = {**compressed(), **archives()}


@pytest.mark.parametrize("name", SEALED)
def test_a_file_that_is_cut_off_never_passes_for_a_whole_one(tmp_path, name):
    content, outcomes = SEALED[name], []
    for size in range(0, len(content), 1 + len(content) // 60):
        outcomes.append(read_or_bad(write(tmp_path, name, content[:size])))
    # Archives may lose padding behind their end without harm.
    assert all(outcome in (BadInput, DOCUMENTS) for outcome in outcomes)
    assert outcomes.count(BadInput) > (2 if name == "a.tar" else 20)


def test_an_archive_that_is_cut_off_between_members(tmp_path):
    members = {"a.txt": b"a", "b.txt": b"b"}
    whole = as_tar(members)
    # Headers and contents are blocks of 512 bytes: a folder, then two members of two blocks each.
    for size in range(0, 5 * 512 + 1, 256):
        assert read_or_bad(write(tmp_path, "a.tar", whole[:size])) == BadInput, size
    assert read(write(tmp_path, "a.tar", whole[: 6 * 512])) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.tar.gz", "a.tar.xz", "a.txt.zst", "a.tar.zst", "a.zip"])
def test_a_damaged_file_never_gives_other_documents(tmp_path, name):
    content = SEALED[name]
    # The directory at the end of a zip file carries no checksum: what it lost cannot be known.
    checked = content.index(b"PK\1\2") if name == "a.zip" else len(content)
    for at in range(0, checked, 1 + checked // 60):
        for bit in (1, 16, 128):
            broken = bytearray(content)
            broken[at] ^= bit
            # A flipped bit in a date or a comment does no harm.
            assert read_or_bad(write(tmp_path, name, broken)) in (BadInput, DOCUMENTS), (at, bit)


class TwoTexts(tfds.core.GeneratorBasedBuilder):
    """A data set whose first text feature is not the one to read."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        texts = tfds.features.FeaturesDict({"a": text, "text": text})
        return tfds.core.DatasetInfo(builder=self, features=texts, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train"), "test": self._generate_examples("test")}

    def _generate_examples(self, split):
        for i in range(30):
            yield i, {"a": "no", "text": f"{split} ä {i}"}


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))


def test_tfds_data_sets_by_name_and_split(tfds_folder):
    for source, split in [("two_texts", "train"), ("two_texts:test", "test")]:
        assert read(f"tfds:{source}") == [f"{split} ä {i}" for i in range(30)]
    assert read("tfds:two_texts:train[10:12]") == ["train ä 10", "train ä 11"]
    assert read("tfds:two_texts:test[:2]#a") == ["no", "no"]
    with pytest.raises(BadInput, match='has no column "b", only a, text'):
        read("tfds:two_texts#b")


def test_tfds_lm1b_as_tfds_itself_mocks_it(tfds_folder):
    with tfds.testing.mock_data(num_examples=7):
        documents = read("tfds:lm1b")
        assert len(documents) == 7 and all(isinstance(document, str) for document in documents)


def test_tfds_that_cannot_be_used(tfds_folder):
    for source in ("no_such_data_set", "two_texts:no_such_split", "two_texts/no_such_config"):
        with pytest.raises(BadInput) as caught:
            read(f"tfds:{source}")
        message = str(caught.value)
        # tfds lists everything that it has; an error of ours stays one to be read.
        assert f"tfds:{source} cannot be loaded" in message and "give tfds:NAME" in message
        assert "\n" not in message and len(message) < 600
    with tfds.testing.mock_data(num_examples=1):
        with pytest.raises(BadInput, match="tfds:mnist has no text feature, only image, label"):
            read("tfds:mnist")


@pytest.fixture
def datasets_package(tmp_path, monkeypatch):
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_hf_reads_the_column_text_of_a_local_folder(datasets_package, tmp_path):
    tmp_path = tmp_path / "data"
    tmp_path.mkdir()
    write(tmp_path, "train.jsonl", as_jsonl(DOCUMENTS))
    write(tmp_path, "test.jsonl", as_jsonl(DOCUMENTS[:2]))
    assert read(f"hf:{tmp_path}") == read(f"hf:{tmp_path}:train") == DOCUMENTS
    assert read(f"hf:{tmp_path}:test") == DOCUMENTS[:2]


def test_hf_that_cannot_be_used(datasets_package, tmp_path):
    for name in ("text", "words", "none"):
        (tmp_path / name).mkdir()
    write(tmp_path, "text/train.jsonl", b'{"text": "a"}')
    write(tmp_path, "words/train.jsonl", b'{"words": "a"}')
    for source, message in {
        f"{tmp_path}/text:no_such_split": "cannot be loaded: .*no_such_split",
        f"{tmp_path}/none": "cannot be loaded",
        f"{tmp_path}/words": 'has no column "text", only words',
    }.items():
        with pytest.raises(BadInput, match=f"hf:{re.escape(source)} {message}"):
            read(f"hf:{source}")


def test_hf_without_the_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = 'hf:name needs the package datasets: pip install "jaxsae[hf]"'
    with pytest.raises(BadInput, match=re.escape(message)):
        read("hf:name")
