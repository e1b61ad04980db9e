"""Tokenising a text before a run needs it, on one host or on several that share a disk."""

from functools import partial

from jaxsae.data.config import DataConfig, PrepareConfig
from jaxsae.lm.tokenizer import tokenizer_of
from jaxsae.lm.weights import find_folder, read_config
from jaxsae.run.inputs import text_of


def prepare(config: PrepareConfig) -> str:
    """Tokenise, and say what is there. Raises BadInput for a text or a tokenizer that cannot be used."""
    folder = find_folder(config.lm)
    vocab_size = read_config(folder).vocab_size
    names = ("text", "documents", "cache", "data_processes", "bad_documents")
    data = DataConfig(**{name: getattr(config, name) for name in names})
    need = None if config.tokens is None else {"train": config.tokens, "held_out": config.eval_tokens}
    prepared = text_of(data, partial(tokenizer_of, folder, vocab_size), vocab_size, need)
    part, parts = map(int, config.part.split("/"))
    if parts > 1:
        count, complete = prepared.make_part(part - 1, parts)
        rest = "all of them are there" if complete else "the other parts are not all there yet"
        return f"part {config.part} of {count} shards is in {prepared.text.folder}; {rest}"
    prepared.grow()
    facts = prepared.facts
    whole = "the whole text" if facts["text_ended"] else "the text goes on"
    count = f"{facts['text_documents']:,} documents, {facts['text_tokens']:,} tokens"
    return f"{count} are in {prepared.text.folder} ({whole})"
