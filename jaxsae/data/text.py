"""Text sources: where documents come from. A source is named by a string:

    stdlib                                    the Python standard library's own source files, one document a file
    PATH, GLOB or FOLDER, [#COLUMN]           files as in formats.py; of a folder those below it with a known ending,
                                              in the order of their names, or what `save_to_disk` wrote
    tfds:NAME[/CONFIG][:SPLIT][#COLUMN]       a tensorflow-datasets dataset with a text feature
    hf:NAME[/CONFIG][:SPLIT][#COLUMN]         a Hugging Face dataset: NAME is OWNER/NAME, one word (without
                                              CONFIG), or a local folder
    tokens:PATH[#COLUMN]                      token ids instead of text, of any of these but .txt and .csv, and of .npy

SPLIT is train by default, COLUMN "text" (of token ids: "input_ids" or "tokens"). A column that holds the messages of
chats is read through the tokenizer's chat template.

Documents come in a fixed order, so everything made of them is a pure function of an index.
"""

import glob
import hashlib
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxsae.data import formats, tables
from jaxsae.data.formats import END_OF_TEXT as END_OF_TEXT
from jaxsae.data.records import Bad, Document, Reading
from jaxsae.errors import BadInput

KINDS = f"stdlib, a file, glob or folder of {formats.ALLOWED}, tfds:..., hf:..., tokens:..."


@dataclass(frozen=True)
class Named:
    """A text source, by the parts of its name."""

    kind: str  # stdlib, files, tfds or hf
    name: str
    config: str | None = None
    split: str = "train"
    column: str | None = None
    ids: bool = False


def parse(source: str) -> Named:
    """The parts of a source's name."""
    if source.startswith("tokens:"):
        return replace(parse(source.removeprefix("tokens:")), ids=True)
    if source == "stdlib":
        return Named("stdlib", source)
    kind, prefixed, rest = source.partition(":")
    if not prefixed or kind not in ("tfds", "hf"):
        # The name of a file is taken as it is, whatever it holds.
        name, _, column = (source, "", "") if Path(source).exists() else source.rpartition("#")
        return Named("files", name or column, column=column if name and column else None)
    rest, _, column = rest.partition("#")
    name, _, split = rest.partition(":")
    config = None
    if kind == "hf" and name.count("/") == 2 and not Path(name).exists():
        name, _, config = name.rpartition("/")
    return Named(kind, name, config, split or "train", column or None)


def are_ids(sources: Sequence[str]) -> bool:
    """Whether the sources hold token ids. Raises BadInput if only some do."""
    kinds = {parse(source).ids for source in sources}
    if len(kinds) > 1:
        raise BadInput(f"--text {' '.join(sources)} mixes text and token ids: give only one kind")
    return kinds == {True}


def documents(
    sources: Sequence[str],
    bad: Callable[[str], None] | None = None,
    render: Callable[[list], str] | None = None,
    vocab_size: int | None = None,
) -> Iterator[Document]:
    """The non-empty documents of the sources, in order: texts, or token ids int32 [N] of `tokens:` sources.

    `bad` is told of each record that cannot be read, by default it raises BadInput; `render` makes texts of chats;
    `vocab_size` is that of the model (needed for token ids). Raises BadInput for a source that cannot be read at all.
    """
    for source in sources:
        named, empty, first_bad = parse(source), True, None
        if named.ids and vocab_size is None:
            raise ValueError("token ids need a vocabulary")
        for document in _open(named, source, Reading(named.column, vocab_size if named.ids else None, render)):
            if isinstance(document, Bad):
                if bad is None:
                    raise BadInput(document.reason)
                first_bad = first_bad or document.reason
                bad(document.reason)
            elif len(document) if isinstance(document, np.ndarray) else document and not document.isspace():
                empty = False
                yield document
        if empty and first_bad:
            raise BadInput(f"the text source {source!r} holds no document that can be read: {first_bad}")
        if empty:
            raise BadInput(f"the text source {source!r} holds no text: give a source with at least one document")


def fingerprint(sources: Sequence[str]) -> str:
    """A digest that changes when the text of the sources does, and not with the place or the names of files.

    Of files: their bytes in order, what their endings say, and the column; of data sets of tensorflow-datasets and of
    the hub: their names.
    """
    digest = hashlib.sha256()
    for source in sources:
        named = parse(source)
        paths = _files(named, source)
        parts = [named.column, named.ids]
        if not paths or named.kind == "hf":
            # Splits of a local folder follow from the names in it.
            parts += [named.config, named.split]
        digest.update(repr([named.kind if paths else source, *parts]).encode())
        for path in paths:
            ending = formats.ENDINGS.search(path.name)
            place = path.relative_to(named.name).as_posix() if named.kind == "hf" else ending and ending[0]
            digest.update(repr([place, path.stat().st_size]).encode())
            try:
                with path.open("rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
            except OSError as error:
                raise BadInput(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def stdlib_files() -> list[Path]:
    """The source files of the running Python's standard library, without its tests, in alphabetical order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "__phello__"}
    # config-* holds files that the build wrote.
    names = [p.relative_to(root) for p in root.rglob("*.py")]
    kept = [n for n in names if not skip & set(n.parts) and "config-" not in str(n)]
    return [root / n for n in sorted(kept, key=lambda n: n.as_posix())]


def _files(named: Named, source: str) -> list[Path]:
    """The files of a source, in order; none of a data set that is known by its name."""
    path = Path(named.name)
    if named.kind == "stdlib":
        return stdlib_files()
    if named.kind == "tfds":
        return []
    if named.kind == "hf":
        if not path.is_dir():
            return []
        return tables.saved_files(_saved(named)) or sorted(p for p in path.rglob("*") if p.is_file())
    if named.name and path.is_dir():
        files = tables.saved_files(path) or _known(path)
    elif path.is_file():
        files = [path]
    else:
        files = [Path(name) for name in sorted(glob.glob(named.name, recursive=True)) if Path(name).is_file()]
    if not files:
        raise BadInput(f"the text source {source!r} matches no file: allowed are {KINDS}")
    return files


def _saved(named: Named) -> Path:
    """The folder of a local data set, or of its split if `save_to_disk` wrote several."""
    folder = Path(named.name)
    return folder / named.split if (folder / "dataset_dict.json").is_file() else folder


def _known(folder: Path) -> list[Path]:
    """The files below a folder that have a known ending, but for hidden ones."""
    paths = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and formats.ENDINGS.search(p.name)]
    shown = [p for p in paths if not any(part.startswith(".") for part in p.parts)]
    return [folder / p for p in sorted(shown, key=lambda p: p.as_posix())]


def _open(named: Named, source: str, reading: Reading) -> Iterator[Document | Bad]:
    if named.kind == "tfds":
        yield from tables.tensorflow_datasets(named.name, named.split, source, reading)
    elif named.kind == "hf" and not (Path(named.name).is_dir() and tables.saved_files(_saved(named))):
        yield from tables.hugging_face(named.name, named.config, named.split, source, reading)
    elif named.kind == "stdlib":
        for path in stdlib_files():
            # A few files are in another encoding on purpose (they test the tokenizer); their bytes are still text.
            yield path.read_text("utf-8", errors="replace")
    else:
        for path in _files(named, source):
            yield from formats.read(path, reading)
