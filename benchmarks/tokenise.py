"""Tokens per second of `jaxsae prepare` with 1 and 2 processes, beside `datasets.map` with the same tokenizer.

    python -m benchmarks.tokenise [--text SOURCE ...] [--lm embedded] [--documents N] [--processes 1 2] [--rounds 2]

Both read documents of one text and write tokens to a disk; jaxsae also reads the source meanwhile, `datasets` has the
documents in memory. With one process, the tokenizer's own threads use the other cores; with several, each has one.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable

from benchmarks.common import print_table
from jaxsae.data import text
from jaxsae.data.tokens import prepare
from jaxsae.lm.tokenizer import tokenizer_of
from jaxsae.lm.weights import find_folder, read_config


def with_jaxsae(args, tokenizer, processes: int) -> int:
    """The number of tokens that were written."""
    with tempfile.TemporaryDirectory() as cache:
        need = {"all": None}
        prepared = prepare(args.text, tokenizer, 64, cache, args.documents, need, processes=processes)
        # What separates documents is not encoded.
        return prepared.facts["text_tokens"] - prepared.facts["text_documents"]


def with_datasets(documents, tokenizer, processes: int) -> int:
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({"text": documents})
    # Its processes are forks, in which the tokenizer's threads do not work.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if processes == 1 else "false"
    with tempfile.TemporaryDirectory() as folder:
        mapped = data.map(
            lambda batch: {"input_ids": tokenizer.encode(batch["text"])},
            batched=True,
            batch_size=10,
            num_proc=None if processes == 1 else processes,
            remove_columns=["text"],
            cache_file_name=f"{folder}/tokens.arrow",
        )
        return sum(map(len, mapped["input_ids"]))


def measure(ways: dict[tuple[str, int], Callable[[], int]], rounds: int) -> list[dict]:
    """A row for each way, of its fastest round."""
    seconds, cpu, tokens = {}, {}, {}
    for _, way in itertools.product(range(rounds), ways):
        start, used = time.perf_counter(), sum(os.times()[:4])
        tokens[way] = ways[way]()
        seconds[way] = min(time.perf_counter() - start, seconds.get(way, float("inf")))
        cpu[way] = min(sum(os.times()[:4]) - used, cpu.get(way, float("inf")))
    assert len({*tokens.values()}) == 1, f"the ways disagree: {tokens}"
    first = next(iter(ways))
    return [
        {
            "way": name,
            "processes": processes,
            "tokens": tokens[name, processes],
            "tokens_per_second": tokens[name, processes] / seconds[name, processes],
            "tokens_per_cpu_second": tokens[name, processes] / cpu[name, processes],
            "ratio": seconds[first] / seconds[name, processes],
        }
        for name, processes in ways
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=["stdlib"])
    parser.add_argument("--lm", default="embedded")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    folder = find_folder(args.lm)
    tokenizer = tokenizer_of(folder, read_config(folder).vocab_size)
    documents = list(itertools.islice(text.documents(args.text), args.documents))
    ways = {("jaxsae", n): lambda n=n: with_jaxsae(args, tokenizer, n) for n in args.processes}
    try:
        import datasets  # noqa: F401
    except ImportError:
        print("the package datasets is not installed, so there is nothing beside it: pip install datasets")
    else:
        ways |= {("datasets.map", n): lambda n=n: with_datasets(documents, tokenizer, n) for n in args.processes}
    print(f"{len(documents)} documents, {sum(map(len, documents)) / 1e6:.1f}M characters, {args.rounds} rounds")
    columns = {
        "way": lambda row: row["way"],
        "processes": lambda row: str(row["processes"]),
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "tokens/CPU s": lambda row: f"{row['tokens_per_cpu_second']:,.0f}",
        "ratio": lambda row: f"{row['ratio']:.2f}",
    }
    print_table(columns, measure(ways, args.rounds))


if __name__ == "__main__":
    main()
