"""Documents in files, by the endings of their names:

    .txt                            split where a line is <|endoftext|>
    .jsonl, .json                   objects with a field COLUMN, a line each or in one list; also a list of strings
    .csv, .parquet, .arrow          tables with a column COLUMN
    .gz, .xz, .zst after these      compressed
    .tar, .tar.gz, .tar.xz, .tar.zst, .tgz, .zip of all these
    .npy                            token ids: [N, T] rows, or one stream [N]

A record that cannot be read is given as Bad, and so is the rest of a damaged file.
"""

import csv
import gzip
import io
import json
import lzma
import re
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from jaxsae.data import tables
from jaxsae.data.records import Bad, Damaged, Document, Reading, not_utf8
from jaxsae.errors import BadInput

END_OF_TEXT = "<|endoftext|>"
ENDINGS = re.compile(r"(\.(txt|jsonl|json|csv|parquet|arrow|tar)(\.(gz|xz|zst))?|\.(tgz|zip|npy))$")
ALLOWED = (
    ".txt, .jsonl, .json, .csv, .parquet, .arrow (also .gz, .xz, .zst, .tar, .tar.gz, .tgz, .tar.xz, .zip of them)"
)
ALLOWED_IDS = ".npy, .jsonl, .json, .parquet, .arrow"
# A stream of token ids is cut into documents of so many, or into twenty if it is short.
STREAM_PART = 65_536
# What the standard library raises for damaged files; RuntimeError is a zip file that wants a password.
BROKEN = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, csv.Error)


def read(path: Path, reading: Reading) -> Iterator[Document | Bad]:
    """The documents of a file, in order. Raises BadInput for one that is not as its ending says."""
    try:
        if path.suffix == ".npy":
            yield from _array(path, reading)
            return
        with path.open("rb") as stream:
            yield from _stream(stream, path.name, str(path), reading)
    except Damaged as error:
        yield Bad(str(error))
    except BROKEN as error:
        yield Bad(f"{path} cannot be read, give a whole file: {error}")


class _Member(tarfile.TarInfo):
    """A member of an archive that has to end as archives do; tarfile itself takes a damaged header for the end."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the archive is damaged or cut off ({error})") from error


def _stream(stream: IO[bytes], name: str, shown: str, reading: Reading) -> Iterator[Document | Bad]:
    """The documents in a binary stream, by the endings of its name."""
    inside = lambda stream, name: _stream(stream, name, shown, reading)
    text = lambda: io.TextIOWrapper(stream, "utf-8", errors="surrogateescape")
    if name.endswith(".tar"):
        # What comes out of zstandard cannot be read twice.
        mode = "r:" if stream.seekable() else "r|"
        with tarfile.open(fileobj=stream, mode=mode, tarinfo=_Member) as archive:
            for member in archive:
                if member.isfile():
                    inner = archive.extractfile(member)
                    inner = inner if mode == "r:" else io.BufferedReader(_Forward(inner))
                    yield from _stream(inner, member.name, f"{shown}:{member.name}", reading)
        # The checksum of a compressed archive is checked where its stream ends, after the archive's own end.
        while stream.read(1 << 20):
            pass
    elif name.endswith(".zip"):
        with zipfile.ZipFile(stream) as archive:
            for member in archive.namelist():
                if not member.endswith("/"):
                    with archive.open(member) as inner:
                        yield from _stream(inner, member, f"{shown}:{member}", reading)
    elif name.endswith(".tgz"):
        yield from inside(gzip.open(stream), name.removesuffix(".tgz") + ".tar")
    elif name.endswith(".gz"):
        yield from inside(gzip.open(stream), name.removesuffix(".gz"))
    elif name.endswith(".xz"):
        yield from inside(lzma.open(stream), name.removesuffix(".xz"))
    elif name.endswith(".zst"):
        yield from inside(_zstandard(stream, shown), name.removesuffix(".zst"))
    elif name.endswith(".jsonl"):
        yield from _json_lines(text(), shown, reading)
    elif name.endswith(".json"):
        yield from _json(text(), shown, reading)
    elif name.endswith(".parquet"):
        yield from tables.parquet(_seekable(stream), shown, reading)
    elif name.endswith(".arrow"):
        yield from tables.arrow(_seekable(stream), shown, reading)
    elif name.endswith(".csv") and reading.vocab_size is None:
        yield from _csv(io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline=""), shown, reading)
    elif name.endswith(".txt") and reading.vocab_size is None:
        yield from _split(text(), shown)
    else:
        raise BadInput(
            f"{shown} is of no known format: allowed are {ALLOWED if reading.vocab_size is None else ALLOWED_IDS}"
        )


class _Forward(io.RawIOBase):
    """A member of a stream that is read once; tarfile's own does not say that it cannot be read again."""

    def __init__(self, stream):
        self.stream = stream

    def readable(self):
        return True

    def readinto(self, into):
        content = self.stream.read(len(into))
        into[: len(content)] = content
        return len(content)


def _seekable(stream: IO[bytes]) -> IO[bytes]:
    return stream if stream.seekable() else io.BytesIO(stream.read())


def _split(lines: Iterable[str], shown: str) -> Iterator[str | Bad]:
    number = 1
    for text in _between_markers(lines):
        wrong = not_utf8(text)
        yield Bad(f"{shown}, document {number}, is {wrong}") if wrong else text
        number += 1


def _between_markers(lines: Iterable[str]) -> Iterator[str]:
    document = []
    for line in lines:
        if line.strip() == END_OF_TEXT:
            yield "".join(document)
            document = []
        else:
            document.append(line)
    yield "".join(document)


def _json_lines(lines: Iterable[str], shown: str, reading: Reading) -> Iterator[Document | Bad]:
    rule = f"every line must be a JSON object with a field {_quoted(reading)}"
    seen = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{shown}, line {number}"
        if wrong := not_utf8(line):
            yield Bad(f"{place}, is {wrong}")
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not seen and isinstance(record, dict):
            seen = bool(reading.choose(record, shown))
        yield _field(record, place, rule, reading)


def _json(file: IO[str], shown: str, reading: Reading) -> Iterator[Document | Bad]:
    content = file.read()
    if wrong := not_utf8(content):
        raise Damaged(f"{shown} is {wrong}")
    try:
        records = json.loads(content)
    except ValueError as error:
        raise Damaged(f"{shown} is not JSON: {error}") from error
    if not isinstance(records, list):
        raise BadInput(f"{shown} must hold one JSON list, of objects or of {reading.kind.partition(' ')[2]}s")
    rule = f"every entry must be {reading.kind}, or an object with a field {_quoted(reading)}"
    if records and isinstance(records[0], dict):
        reading.choose(records[0], shown)
    for number, record in enumerate(records, 1):
        place, whole = f"{shown}, entry {number}", isinstance(record, str)
        yield reading.document(record, place, rule) if whole else _field(record, place, rule, reading)


def _quoted(reading: Reading) -> str:
    return " or ".join(f'"{name}"' for name in reading.names)


def _field(record, place: str, rule: str, reading: Reading) -> Document | Bad:
    """The document in a JSON object, or in a bare list of token ids."""
    if isinstance(record, list) and reading.vocab_size is not None:
        return reading.document(record, place, rule)
    name = next((name for name in reading.names if isinstance(record, dict) and name in record), None)
    return reading.document(None if name is None else record[name], place, rule)


def _csv(file: IO[str], shown: str, reading: Reading) -> Iterator[Document | Bad]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = csv.DictReader(file)
    name = reading.choose(rows.fieldnames or (), shown)
    for row in rows:
        place, wrong = f"{shown}, line {rows.line_num}", not_utf8(row[name] or "")
        rule = f'every row must have a field "{name}"'
        yield Bad(f"{place}, is {wrong}") if wrong else reading.document(row[name], place, rule)


def _array(path: Path, reading: Reading) -> Iterator[np.ndarray | Bad]:
    if reading.vocab_size is None:
        raise BadInput(f"{path} holds numbers: give it as tokens:{path} if they are token ids")
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise Damaged(f"{path} cannot be read, give a whole file: {error}") from error
    if ids.ndim not in (1, 2) or not np.issubdtype(ids.dtype, np.integer):
        raise BadInput(f"{path} holds {ids.dtype} {list(ids.shape)}: token ids are whole numbers [N] or [N, T]")
    if ids.ndim == 1:
        size = max(1, min(STREAM_PART, -(-len(ids) // 20)))
        ids = [ids[start : start + size] for start in range(0, len(ids), size)]
    for number, row in enumerate(ids, 1):
        yield reading.document(row, f"{path}, row {number}", "every row must be something")


def _zstandard(stream: IO[bytes], shown: str) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise BadInput(f'{shown} needs the package zstandard: pip install "jaxsae[data]"') from error

    class Frames(io.RawIOBase):
        """The frames of a stream, one after the other. zstandard's own reader takes a cut for the end."""

        frame, compressed, plain = None, b"", b""

        def readable(self):
            return True

        def readinto(self, into):
            while not self.plain:
                self.compressed = self.compressed or stream.read(1 << 18)
                if not self.compressed:
                    if self.frame is not None:
                        raise EOFError("it is cut off")
                    return 0
                self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    self.plain = self.frame.decompress(self.compressed)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                self.compressed = self.frame.unused_data
                if self.frame.eof:
                    self.frame = None
            count = min(len(into), len(self.plain))
            into[:count], self.plain = self.plain[:count], self.plain[count:]
            return count

    return io.BufferedReader(Frames(), 1 << 16)
