"""Text sources: where documents come from. A source is named by a string:

    stdlib                          the Python standard library's own source files, one document a file
    PATH or GLOB                    .txt (split where a line is <|endoftext|>), .jsonl (the field "text"),
                                    these compressed as .gz or .xz, and .tar, .tar.gz, .tar.xz, .zip of them
    tfds:NAME[/CONFIG][:SPLIT]      a tensorflow-datasets dataset with a text feature
    hf:NAME[:SPLIT]                 a Hugging Face dataset (a hub name or a local folder) with a column "text"

Documents come in a fixed order, so everything made of them is a pure function of an index.
"""

import glob
import gzip
import hashlib
import io
import json
import lzma
import sysconfig
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxsae.errors import BadInput

END_OF_TEXT = "<|endoftext|>"
KINDS = (
    "stdlib, a file or glob of .txt or .jsonl (also .gz, .xz, .tar, .tar.gz, .tgz, .tar.xz, .zip of them), tfds:..., "
    "hf:..."
)


def is_path(source: str) -> bool:
    """Whether a text source is a file or a pattern of files."""
    return source != "stdlib" and not source.startswith(("tfds:", "hf:"))


def documents(sources: Sequence[str]) -> Iterator[str]:
    """The non-empty documents of the sources, in order. Raises BadInput for a source that cannot be read."""
    for source in sources:
        empty = True
        for text in _open(source):
            if text and not text.isspace():
                empty = False
                yield text
        if empty:
            raise BadInput(f"the text source {source!r} holds no text: give a source with at least one document")


def fingerprint(sources: Sequence[str]) -> str:
    """A digest that changes when the text of the sources does: of the bytes of files, of the names of data sets."""
    digest = hashlib.sha256()
    for source in sources:
        if source.startswith(("tfds:", "hf:")):
            digest.update(source.encode())
        for path in _fingerprinted(source):
            digest.update(b"\0file\0" + path.name.encode())
            with _readable(path), path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _fingerprinted(source: str) -> list[Path]:
    if source.startswith("tfds:"):
        return []
    if source.startswith("hf:"):
        # A hub name has no files here; a local folder has.
        name, _ = _name_and_split(source.removeprefix("hf:"))
        return sorted(path for path in Path(name).rglob("*") if path.is_file())
    return _paths(source)


def stdlib_files() -> list[Path]:
    """The source files of the running Python's standard library, without its tests, in alphabetical order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "__phello__"}
    # config-* holds files that the build wrote.
    names = [p.relative_to(root) for p in root.rglob("*.py")]
    kept = [n for n in names if not skip & set(n.parts) and "config-" not in str(n)]
    return [root / n for n in sorted(kept, key=lambda n: n.as_posix())]


def _paths(source: str) -> list[Path]:
    if source == "stdlib":
        return stdlib_files()
    # The name of a file is taken as it is, whatever brackets it holds.
    names = [source] if Path(source).is_file() else sorted(glob.glob(source, recursive=True))
    files = [Path(name) for name in names if Path(name).is_file()]
    if not files:
        raise BadInput(f"the text source {source!r} matches no file: allowed are {KINDS}")
    return files


def _open(source: str) -> Iterator[str]:
    if source.startswith("tfds:"):
        return _tfds(source.removeprefix("tfds:"))
    if source.startswith("hf:"):
        return _huggingface(source.removeprefix("hf:"))
    if source == "stdlib":
        return _stdlib()
    return (text for path in _paths(source) for text in _file(path))


def _stdlib() -> Iterator[str]:
    for path in stdlib_files():
        # A few files are in another encoding on purpose (they test the tokenizer); their bytes are still text.
        yield path.read_text("utf-8", errors="replace")


# What the standard library raises for damaged files; RuntimeError is a zip file that wants a password.
BROKEN = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


class _readable:
    """Turns what goes wrong while `path` is read into one clear error."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, UnicodeDecodeError):
            byte = error.object[error.start]
            raise BadInput(
                f"{self.path} is not UTF-8 text (it holds the byte {byte:#04x}): convert it first"
            ) from error
        if isinstance(error, BROKEN):
            raise BadInput(f"{self.path} cannot be read, give a whole file: {error}") from error


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


def _file(path: Path) -> Iterator[str]:
    with _readable(path), path.open("rb") as stream:
        yield from _stream(stream, path.name, str(path))


def _stream(stream, name: str, shown: str) -> Iterator[str]:
    """The documents in a binary stream, by the endings of its name."""
    if name.endswith(".tar"):
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member) as archive:
            for member in archive:
                if member.isfile():
                    yield from _stream(archive.extractfile(member), member.name, f"{shown}:{member.name}")
        # The checksum of a compressed archive is checked where its stream ends, after the archive's own end.
        while stream.read(1 << 20):
            pass
    elif name.endswith(".zip"):
        with zipfile.ZipFile(stream) as archive:
            for member in archive.namelist():
                if not member.endswith("/"):
                    with archive.open(member) as inner:
                        yield from _stream(inner, member, f"{shown}:{member}")
    elif name.endswith(".tgz"):
        yield from _stream(gzip.open(stream), name.removesuffix(".tgz") + ".tar", shown)
    elif name.endswith(".gz"):
        yield from _stream(gzip.open(stream), name.removesuffix(".gz"), shown)
    elif name.endswith(".xz"):
        yield from _stream(lzma.open(stream), name.removesuffix(".xz"), shown)
    elif name.endswith(".jsonl"):
        yield from _json_lines(io.TextIOWrapper(stream, "utf-8"), shown)
    elif name.endswith(".txt"):
        yield from _split(io.TextIOWrapper(stream, "utf-8"))
    else:
        raise BadInput(f"{shown} is of no known format: allowed are {KINDS}")


def _split(lines: Iterable[str]) -> Iterator[str]:
    document = []
    for line in lines:
        if line.strip() == END_OF_TEXT:
            yield "".join(document)
            document = []
        else:
            document.append(line)
    yield "".join(document)


def _json_lines(lines: Iterable[str], shown: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()  # JSON can name half a character, which no tokenizer takes
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f'{shown}, line {number}: every line must be a JSON object with a field "text" that is a string'
            ) from error
        yield text


def _name_and_split(source: str) -> tuple[str, str]:
    name, _, split = source.partition(":")
    return name, split or "train"


def _tfds(source: str) -> Iterator[str]:
    import tensorflow_datasets as tfds

    name, split = _name_and_split(source)
    try:
        data = tfds.data_source(name, split=split)
    except Exception as error:  # tfds has no common base class for what goes wrong here
        # The rest of a long message lists every dataset that there is.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(
            f"tfds:{source} cannot be loaded: {reason} (give tfds:NAME[/CONFIG][:SPLIT] of a dataset that is prepared "
            "under $TFDS_DATA_DIR, or that can be downloaded)"
        ) from error
    features = data.dataset_info.features
    keys = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if not keys:
        raise BadInput(f"tfds:{source} has no text feature, only {', '.join(features.keys())}: give another dataset")
    key = "text" if "text" in keys else keys[0]
    for example in data:
        # tfds reads bytes, but its mock makes strings.
        yield example[key] if isinstance(example[key], str) else example[key].decode()


def _huggingface(source: str) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise BadInput(f'hf:{source} needs the package datasets: pip install "jaxsae[hf]"') from error

    name, split = _name_and_split(source)
    try:
        data = datasets.load_dataset(name, split=split, streaming=True)
        columns = next(iter(data)).keys()
    except Exception as error:  # datasets, huggingface_hub, fsspec and pyarrow each raise their own
        raise BadInput(f"hf:{source} cannot be loaded: {type(error).__name__}: {error}") from error
    if "text" not in columns:
        raise BadInput(f'hf:{source} has no column "text", only {", ".join(columns)}: give another dataset')
    for example in data:
        yield example["text"]
