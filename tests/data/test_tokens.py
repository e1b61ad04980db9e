"""Documents to contexts on disk: what is held out, what lies there, in what order it is read."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jaxsae.data import text, tokens
from jaxsae.errors import BadInput
from jaxsae.lm import tokenizer as lm_tokenizer
from tests.lm.tiny import library_text, whole_documents
from tests.lm.tiny import tokenizer as make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(600)


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 40, 59])
def test_splits_are_disjoint_and_complete(count):
    documents = [f"document {i:010}" for i in range(count)]
    split = lambda name: list(tokens.split_documents(iter(documents), name))
    train, held_out = split("train"), split("held_out")
    if count == 1:
        assert train + held_out == [documents[0][:18], documents[0][18:]]
        return
    assert sorted(train + held_out) == documents
    assert held_out == (documents[19::20] if count >= 20 else documents[-1:])
    assert train == sorted(train)


def test_the_held_out_part_of_one_document_is_its_last_twentieth():
    document = library_text(10_000)
    train, held_out = (list(tokens.split_documents([document], s)) for s in ("train", "held_out"))
    assert "".join(train + held_out) == document
    assert len(held_out[0]) == pytest.approx(len(document) / 20, abs=1)


def test_splitting_reads_no_further_than_it_must():
    endless = (str(i) for i in itertools.count())
    held_out = tokens.split_documents(endless, "held_out")
    assert list(itertools.islice(held_out, 3)) == ["19", "39", "59"]


# 50 documents of different words, so that no two contexts are equal.
COUNTED = [" ".join(f"{i}.{j}" for j in range(40)) for i in range(50)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(COUNTED))
    return str(path)


def facts(folder):
    """Everything below a folder with its time of writing."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


class Watched:
    """The backend of a tokenizer, which calls `before(n)` before its n-th batch."""

    def __init__(self, backend, before):
        self.backend, self.before, self.calls = backend, before, 0

    def to_str(self):
        return self.backend.to_str()

    def encode_batch_fast(self, *args, **kwargs):
        self.calls += 1
        self.before(self.calls)
        return self.backend.encode_batch_fast(*args, **kwargs)


def watch(tokenizer, before):
    return replace(tokenizer, backend=Watched(tokenizer.backend, before))


def test_prepared_splits_are_the_contexts_of_their_documents(tokenizer, source, tmp_path):
    folder = tokens.prepare([source], tokenizer, 16, str(tmp_path / "cache"))
    documents = list(text.documents([source]))
    for split in ("train", "held_out"):
        held = tokens.TokenContexts(folder, split, None)
        want = whole_documents(tokenizer, tokens.split_documents(documents, split), 16)
        assert len(held) == len(want) > 0
        np.testing.assert_array_equal(held.read(0, len(held)), want)


def test_prepare_writes_once(tokenizer, source, tmp_path):
    cache = str(tmp_path / "cache")
    watched = watch(tokenizer, lambda n: None)
    folder = tokens.prepare([source], watched, 16, cache)
    before, calls = facts(tmp_path), watched.backend.calls
    assert tokens.prepare([source], watched, 16, cache) == folder
    assert facts(tmp_path) == before and watched.backend.calls == calls
    assert list(folder.parent.iterdir()) == [folder]


def test_other_text_tokenizer_or_context_is_another_data_set(tokenizer, source, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("x")
    first = tokens.fingerprint([source], tokenizer, 16)
    assert first == tokens.fingerprint([source], tokenizer, 16)
    others = [
        tokens.fingerprint([source], tokenizer, 17),
        tokens.fingerprint([source, str(other)], tokenizer, 16),
        tokens.fingerprint([str(other), source], tokenizer, 16),
        tokens.fingerprint([source], make_tokenizer(500), 16),
        tokens.fingerprint([source], replace(tokenizer, end_of_text=1), 16),
    ]
    assert len({first, *others}) == 6
    # The name of the tokenizer's folder says nothing about it.
    assert tokens.fingerprint([source], replace(tokenizer, name="elsewhere"), 16) == first


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 5])
def test_an_interrupted_write_leaves_nothing(tokenizer, source, tmp_path, monkeypatch, error, call):
    monkeypatch.setattr(lm_tokenizer, "_batches", partial(lm_tokenizer._batches, characters=1000))

    def before(n):
        if n == call:
            raise error("stop")

    with pytest.raises(error):
        tokens.prepare([source], watch(tokenizer, before), 16, str(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []
    folder = tokens.prepare([source], tokenizer, 16, str(tmp_path / "cache"))
    assert len(tokens.TokenContexts(folder, "train", 0)) > 0


def test_two_writers_at_once_both_end_with_the_whole_data_set(tokenizer, source, tmp_path):
    prepare = partial(tokens.prepare, [source], context=16, cache=str(tmp_path / "cache"))
    inner = []
    # The second writer begins and ends while the first one is at work.
    watched = watch(tokenizer, lambda n: n == 1 and inner.append(prepare(tokenizer=tokenizer)))
    folder = prepare(tokenizer=watched)
    assert inner == [folder] and list(folder.parent.iterdir()) == [folder]


def test_the_cache_is_where_the_environment_says(tokenizer, source, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tokens.prepare([source], tokenizer, 16).parent == tmp_path / "mine" / "tokens"
    monkeypatch.delenv("JAXSAE_CACHE")
    assert tokens.default_cache() == str(tmp_path / "xdg" / "jaxsae")


@pytest.mark.parametrize("context, part", [(800, "held-out"), (100_000, "train")])
def test_text_that_is_too_short(tokenizer, source, tmp_path, context, part):
    message = f"{part} part does not fill one context of {context} tokens; give"
    with pytest.raises(BadInput, match=message):
        tokens.prepare([source], tokenizer, context, str(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


def test_a_bad_source_is_its_own_error(tokenizer, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "some words of text"}\n' * 100 + "[]")
    with pytest.raises(BadInput, match=r"bad\.jsonl, line 101"):
        tokens.prepare([str(path)], tokenizer, 4, str(tmp_path / "cache"))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


@pytest.fixture
def folder(tokenizer, source, tmp_path):
    return tokens.prepare([source], tokenizer, 16, str(tmp_path / "cache"))


def test_reading_is_a_pure_function_of_the_index(folder):
    contexts = tokens.TokenContexts(folder, "train", 3)
    n = len(contexts)
    everything = contexts.read(0, 2 * n)
    assert everything.dtype == np.int32 and everything.shape == (2 * n, 16)
    again = tokens.TokenContexts(folder, "train", 3)
    for start, stop in [(n - 2, n + 3), (0, 1), (2 * n - 1, 2 * n), (1, 4)]:
        np.testing.assert_array_equal(again.read(start, stop), everything[start:stop])


def test_every_epoch_is_a_permutation_of_its_own(folder):
    def order(seed, epoch):
        contexts = tokens.TokenContexts(folder, "train", seed)
        n = len(contexts)
        return [row.tobytes() for row in contexts.read(epoch * n, (epoch + 1) * n)]

    plain = order(None, 0)
    assert len(set(plain)) == len(plain) > 100
    orders = [plain, order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(sorted(o) == sorted(plain) for o in orders)
    # Almost no context keeps its place; a seed's second epoch is not the next seed's first either.
    for a, b in itertools.combinations(orders, 2):
        assert sum(x == y for x, y in zip(a, b)) < len(plain) / 10


def test_the_order_of_the_text_repeats(folder):
    contexts = tokens.TokenContexts(folder, "held_out", None)
    n = len(contexts)
    np.testing.assert_array_equal(contexts.read(0, n), contexts.read(n, 2 * n))
