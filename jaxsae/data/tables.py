"""Documents in tables: Parquet and Arrow files, data sets of Hugging Face and of tensorflow-datasets.

The packages that read them are imported when they are needed.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from jaxsae.data.records import Bad, Damaged, Document, Reading
from jaxsae.errors import BadInput

# Seconds to wait before a stream that broke is opened again; after the last one it is given up.
WAITS = (1, 4, 15, 60, 240)


def _pyarrow(shown: str):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadInput(f'{shown} needs the package pyarrow: pip install "jaxsae[data]"') from error
    return pyarrow


def parquet(stream: IO[bytes], shown: str, reading: Reading) -> Iterator[Document | Bad]:
    pyarrow = _pyarrow(shown)
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        name = reading.choose(file.schema_arrow.names, shown)
        yield from _column((batch.column(0) for batch in file.iter_batches(1024, columns=[name])), shown, reading)
    except pyarrow.ArrowException as error:
        raise Damaged(f"{shown} cannot be read, give a whole file: {error}") from error


def arrow(stream: IO[bytes], shown: str, reading: Reading) -> Iterator[Document | Bad]:
    """A file in Arrow's stream format, as `save_to_disk` of the package datasets writes it, or in its file format."""
    pyarrow = _pyarrow(shown)
    try:
        if stream.read(6) == b"ARROW1":
            file = pyarrow.ipc.open_file(stream)
            schema, batches = file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            stream.seek(0)
            batches = pyarrow.ipc.open_stream(stream)
            schema = batches.schema
        name = reading.choose(schema.names, shown)
        yield from _column((batch.column(name) for batch in batches), shown, reading)
    except pyarrow.ArrowException as error:
        raise Damaged(f"{shown} cannot be read, give a whole file: {error}") from error


def _column(parts: Iterable, shown: str, reading: Reading) -> Iterator[Document | Bad]:
    row = 0
    for part in parts:
        for value in part:
            row += 1
            numbers = reading.vocab_size is not None and value.is_valid and hasattr(value, "values")
            plain = value.values.to_numpy(zero_copy_only=False) if numbers else value.as_py()
            yield reading.document(plain, f"{shown}, row {row}", "the column must hold a value")


def saved_files(folder: Path) -> list[Path] | None:
    """The .arrow files, in order, of a folder that `save_to_disk` of the package datasets wrote; None if it did not.

    Raises BadInput for a folder of several data sets of which none is called train.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        split = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
        if split is None:
            raise BadInput(f"{folder} holds the data sets {', '.join(splits)}: give {folder / splits[0]} or another")
        return saved_files(folder / split)
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    return [folder / entry["filename"] for entry in json.loads((folder / "state.json").read_text())["_data_files"]]


def tensorflow_datasets(name: str, split: str, shown: str, reading: Reading) -> Iterator[Document | Bad]:
    import tensorflow_datasets as tfds

    try:
        data = tfds.data_source(name, split=split)
    except Exception as error:  # tfds has no common base class for what goes wrong here
        # The rest of a long message lists every dataset that there is.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(
            f"{shown} cannot be loaded: {reason} (give tfds:NAME[/CONFIG][:SPLIT][#COLUMN] of a dataset that is "
            "prepared under $TFDS_DATA_DIR, or that can be downloaded)"
        ) from error
    features = data.dataset_info.features
    if reading.column or reading.vocab_size is not None or "text" in features:
        key = reading.choose(features.keys(), shown)
    else:
        texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
        if not texts:
            raise BadInput(f"{shown} has no text feature, only {', '.join(features)}: give another dataset")
        key = texts[0]
    for number, example in enumerate(data, 1):
        value = example[key]
        if isinstance(value, bytes):
            # tfds reads bytes, but its mock makes strings.
            value = value.decode("utf-8", errors="surrogateescape")
        yield reading.document(value, f"{shown}, example {number}", f"every example must have a feature {key}")


def hugging_face(name: str, config: str | None, split: str, shown: str, reading: Reading) -> Iterator[Document | Bad]:
    """The documents of a data set on the hub, or in a local folder, as a stream that is opened again where it breaks.

    Raises BadInput if it cannot be loaded, or if the stream breaks again and again at one document.
    """
    try:
        import datasets
    except ImportError as error:
        raise BadInput(f'{shown} needs the package datasets: pip install "jaxsae[hf]"') from error

    def load():
        return datasets.load_dataset(name, config, split=split, streaming=True)

    try:
        columns = next(iter(load())).keys()
    except StopIteration:
        return
    except Exception as error:  # datasets, huggingface_hub, fsspec and pyarrow each raise their own
        raise BadInput(f"{shown} cannot be loaded: {type(error).__name__}: {error}") from error
    key = reading.choose(columns, shown)
    rows = resumed(lambda start: load().skip(start) if start else load(), shown)
    for number, row in enumerate(rows, 1):
        yield reading.document(row.get(key), f"{shown}, row {number}", f'every row must have a column "{key}"')


def resumed(open_at: Callable[[int], Iterable], shown: str) -> Iterator:
    """The rows of a stream that may break: then it is opened again at the row where it broke, after a while.

    `open_at(n)` gives the rows from number n on. Raises BadInput if no row comes after all of WAITS.
    """
    done, waits = 0, iter(WAITS)
    while True:
        try:
            for row in open_at(done):
                yield row
                done, waits = done + 1, iter(WAITS)
            return
        except Exception as error:  # what a network raises has no common base class
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            wait = next(waits, None)
            if wait is None:
                raise BadInput(
                    f"{shown} broke at row {done + 1} again and again ({reason}); what was tokenised is kept, so start "
                    "the same command again when the source can be reached"
                ) from error
            print(f"jaxsae: {shown} broke at row {done + 1} ({reason}); again in {wait} s", file=sys.stderr)
            time.sleep(wait)
