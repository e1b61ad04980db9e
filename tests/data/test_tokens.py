"""Documents to contexts on disk: what is held out, what lies there, in what order it is read, what a kill leaves."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxsae.data import prepare as preparing
from jaxsae.data import text, tokens
from jaxsae.data.config import PrepareConfig
from jaxsae.errors import BadInput
from jaxsae.run.prepare import prepare as run_prepare
from tests.lm.tiny import library_text, whole_documents
from tests.lm.tiny import tokenizer as make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(600)


def split_documents(documents, split):
    return (document for document, held_out in preparing.with_split(documents) if held_out == (split == "held_out"))


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 40, 59])
def test_splits_are_disjoint_and_complete(count):
    documents = [f"document {i:010}" for i in range(count)]
    split = lambda name: list(split_documents(iter(documents), name))
    train, held_out = split("train"), split("held_out")
    if count == 1:
        assert train + held_out == [documents[0][:18], documents[0][18:]]
        return
    assert sorted(train + held_out) == documents
    assert held_out == (documents[19::20] if count >= 20 else documents[-1:])
    assert train == sorted(train)


def test_the_held_out_part_of_one_document_is_its_last_twentieth():
    document = library_text(10_000)
    train, held_out = (list(split_documents([document], s)) for s in ("train", "held_out"))
    assert "".join(train + held_out) == document
    assert len(held_out[0]) == pytest.approx(len(document) / 20, abs=1)


def test_splitting_reads_no_further_than_it_must():
    endless = (str(i) for i in itertools.count())
    held_out = split_documents(endless, "held_out")
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


def contents(folder):
    """The bytes of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small(monkeypatch):
    """Shards of few documents, and windows of two shards."""
    monkeypatch.setattr(preparing, "SHARD", 1500)
    monkeypatch.setattr(tokens, "WINDOW", 2)


def opened(sources, tokenizer, context, cache, **options):
    """A text that is prepared as far as it is needed, in this process."""
    return tokens.prepare(sources, tokenizer, context, str(cache), processes=1, **options)


class Watched:
    """The backend of a tokenizer, which calls `before(n)` before its n-th batch."""

    def __init__(self, backend, before):
        self.backend, self.before, self.calls = backend, before, 0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def encode_batch_fast(self, *args, **kwargs):
        self.calls += 1
        self.before(self.calls)
        return self.backend.encode_batch_fast(*args, **kwargs)


def watch(tokenizer, before):
    return replace(tokenizer, backend=Watched(tokenizer.backend, before))


@pytest.mark.parametrize("size", [1, 700, 10**6])
@pytest.mark.parametrize("context", [2, 16, 61])
def test_prepared_splits_are_the_contexts_of_their_documents(tokenizer, source, tmp_path, monkeypatch, size, context):
    monkeypatch.setattr(preparing, "SHARD", size)
    prepared = opened([source], tokenizer, context, tmp_path / "cache")
    documents = list(text.documents([source]))
    for split in ("train", "held_out"):
        held = tokens.TokenContexts(prepared, split, None)
        want = whole_documents(tokenizer, split_documents(documents, split), context)
        assert len(held) == len(want) > 0
        np.testing.assert_array_equal(held.read(0, len(held)), want)
    both = tokens.TokenContexts(prepared, "all", None)
    assert len(both) == sum(len(tokens.TokenContexts(prepared, split, None)) for split in ("train", "held_out"))
    parts = [tokens.TokenContexts(prepared, split, None).read(0, 2) for split in ("train", "held_out")]
    np.testing.assert_array_equal(both.read(0, 2), parts[0])
    np.testing.assert_array_equal(both.read(len(both) - len(held), len(both) - len(held) + 2), parts[1])
    facts = prepared.facts
    assert facts["text_documents"] == 50 and facts["text_ended"]
    assert facts["text_tokens"] == sum(1 + len(row) for row in tokenizer.encode(documents))


def test_a_document_longer_than_a_shard_lies_in_several(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "SHARD", 1000)
    path = tmp_path / "text.txt"
    path.write_text(library_text(20_000))
    prepared = opened([str(path)], tokenizer, 16, tmp_path / "cache")
    assert len(prepared.text.shards) > 10 and prepared.facts["text_documents"] == 2
    (train,), (held_out,) = (split_documents(text.documents([str(path)]), s) for s in ("train", "held_out"))
    for split, document in (("train", train), ("held_out", held_out)):
        contexts = tokens.TokenContexts(prepared, split, None)
        np.testing.assert_array_equal(contexts.read(0, len(contexts)), whole_documents(tokenizer, [document], 16))


def test_every_context_begins_with_bos_if_it_is_asked_for(tokenizer, source, tmp_path, small):
    begun = replace(tokenizer, start=7)
    contexts = tokens.TokenContexts(opened([source], begun, 17, tmp_path / "cache", bos=True), "train", None)
    got = contexts.read(0, len(contexts))
    assert (got[:, 0] == 7).all()
    documents = split_documents(text.documents([source]), "train")
    np.testing.assert_array_equal(got[:, 1:], whole_documents(tokenizer, documents, 16))
    # It is the default of a model whose tokenizer begins texts with it.
    own = tokens.TokenContexts(opened([source], replace(begun, bos=7), 17, tmp_path / "cache"), "train", None)
    np.testing.assert_array_equal(own.read(0, len(own)), got)
    with pytest.raises(BadInput, match="no room"):
        opened([source], replace(begun, bos=7), 1, tmp_path / "cache")


@pytest.mark.parametrize("bos", [False, True])
def test_contexts_that_begin_at_documents_are_padded_with_minus_one(tokenizer, source, tmp_path, small, bos):
    begun, start = replace(tokenizer, start=7), [7] if bos else []
    contexts = tokens.TokenContexts(
        opened([source], begun, 100, tmp_path / "cache", bos=bos, pack="documents"), "train", None
    )
    want, room = [], 100 - bos
    for ids in tokenizer.encode(list(split_documents(text.documents([source]), "train"))):
        for i in range(0, len(ids), room):
            want.append(start + ids[i : i + room] + [-1] * (room - len(ids[i : i + room])))
    assert contexts.padded and len(contexts) == len(want) > 90
    np.testing.assert_array_equal(contexts.read(0, len(contexts)), want)


def test_prepare_writes_once(tokenizer, source, tmp_path, small):
    watched = watch(tokenizer, lambda n: None)
    folder = opened([source], watched, 16, tmp_path / "cache").text.folder
    before, calls = facts(tmp_path), watched.backend.calls
    # Another length of contexts, or another packing, needs no other tokens.
    for context, pack in ((16, "stream"), (32, "stream"), (16, "documents")):
        assert opened([source], watched, context, tmp_path / "cache", pack=pack).text.folder == folder
    assert facts(tmp_path) == before and watched.backend.calls == calls
    assert list(folder.parent.iterdir()) == [folder]


def test_other_text_or_tokenizer_is_another_data_set(tokenizer, source, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("x")

    def folder(sources, tokenizer=tokenizer, limit=None):
        return tokens.open_text(sources, tokenizer, 16, str(tmp_path), limit).text.folder

    first = folder([source])
    others = [
        folder([source, str(other)]),
        folder([str(other), source]),
        folder([source], make_tokenizer(500)),
        folder([source], replace(tokenizer, end_of_text=1)),
        folder([source], limit=3),
    ]
    assert len({first, *others}) == 6
    # The name of the tokenizer's folder says nothing about it, and that of the text's neither.
    assert folder([source], replace(tokenizer, name="elsewhere")) == first
    moved = tmp_path / "moved.txt"
    moved.write_bytes(Path(source).read_bytes())
    assert folder([str(moved)]) == first


def test_contexts_packed_otherwise_have_another_fingerprint(tokenizer, source, tmp_path):
    prints = {
        tokens.open_text([source], tokenizer, context, str(tmp_path), bos=bos, pack=pack).fingerprint
        for context in (16, 17)
        for bos in (False, True)
        for pack in ("stream", "documents")
    }
    assert len(prints) == 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 5])
def test_an_interrupted_write_keeps_whole_shards_and_goes_on(tokenizer, source, tmp_path, small, error, call):
    def before(n):
        if n == call:
            raise error("stop")

    with pytest.raises(error):
        opened([source], watch(tokenizer, before), 16, tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    kept = contents(folder)
    assert sorted(kept) == [f"{i:06}{end}" for i in range(call - 1) for end in (".json", ".npy", ".starts.npy")]
    rest = watch(tokenizer, lambda n: None)
    assert opened([source], rest, 16, tmp_path / "cache").text.folder == folder
    whole = opened([source], tokenizer, 16, tmp_path / "other")
    assert rest.backend.calls == len(whole.text.shards) - (call - 1)
    assert contents(folder) == contents(whole.text.folder) and kept.items() <= contents(folder).items()


def test_two_writers_at_once_both_end_with_the_whole_data_set(tokenizer, source, tmp_path, small):
    inner = []
    # The second writer begins and ends while the first one is at work.
    other = lambda n: n == 2 and inner.append(opened([source], tokenizer, 16, tmp_path / "cache"))
    prepared = opened([source], watch(tokenizer, other), 16, tmp_path / "cache")
    assert inner[0].text.folder == prepared.text.folder and inner[0].text.shards == prepared.text.shards
    assert list(prepared.text.folder.parent.iterdir()) == [prepared.text.folder]


def test_several_processes_write_the_bytes_of_one(tokenizer, source, tmp_path, small):
    one = opened([source], tokenizer, 16, tmp_path / "one")
    two = tokens.prepare([source], tokenizer, 16, str(tmp_path / "two"), processes=2)
    assert len(one.text.shards) > 5 and contents(one.text.folder) == contents(two.text.folder)


def test_a_process_that_fails_says_why(source, tmp_path, small):
    tokenizer = replace(make_tokenizer(600), vocab_size=300)
    with pytest.raises(BadInput, match="the model's vocabulary has 300 entries"):
        tokens.prepare([source], tokenizer, 16, str(tmp_path / "cache"), processes=2)


def test_hosts_that_share_a_disk_each_write_a_part(tokenizer, source, tmp_path, small):
    whole = opened([source], tokenizer, 16, tmp_path / "whole").text.folder
    part = lambda i: tokens.open_text([source], tokenizer, 16, str(tmp_path / "parts"), processes=1).make_part(i, 3)
    count = len(list(whole.glob("*.starts.npy")))
    assert [part(2), part(0)] == [(count, False)] * 2
    folder = tmp_path / "parts" / "tokens" / whole.name
    assert sorted(path.name for path in folder.glob("*.starts.npy")) == [
        f"{i:06}.starts.npy" for i in range(count) if i % 3 != 1
    ]
    assert part(1) == (count, True) and contents(folder) == contents(whole)


def test_a_text_that_was_killed_while_it_was_tokenised_goes_on_to_the_same_bytes(source, tmp_path, monkeypatch):
    """SIGKILL of `jaxsae prepare`, with its two processes at work."""
    code = "import sys; from jaxsae.data import prepare; prepare.SHARD = 300; from jaxsae.cli import main; "
    cache = tmp_path / "cache"
    # Enough for a second of work.
    Path(source).write_text(library_text(100_000))
    run = [sys.executable, "-c", code + "sys.exit(main(sys.argv[1:]))", "prepare", "--text", source]
    run += ["--cache", str(cache), "--data-processes", "2"]
    process = subprocess.Popen(run, stderr=subprocess.DEVNULL)
    while len(list(cache.glob("tokens/*/*.json"))) < 3 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (folder,) = (cache / "tokens").iterdir()
    assert not (folder / "end.json").exists()
    monkeypatch.setattr(preparing, "SHARD", 300)
    for place in (cache, tmp_path / "undisturbed"):
        run_prepare(PrepareConfig(text=(source,), cache=str(place), data_processes=2))
    whole = {name: got for name, got in contents(folder).items() if not name.endswith(".writing")}
    assert whole == contents(tmp_path / "undisturbed" / "tokens" / folder.name) and len(whole) > 30


def test_a_run_tokenises_only_what_it_needs_and_a_later_one_the_rest(tokenizer, source, tmp_path, small):
    watched = watch(tokenizer, lambda n: None)
    few = opened([source], watched, 16, tmp_path / "cache", need={"train": 400, "held_out": 16})
    assert len(few.text.shards) % 2 == 0 and not few.text.ended and not few.facts["text_ended"]
    assert watched.backend.calls == len(few.text.shards)
    assert few.counts("train")[-1] >= 400 / 16 > few.counts("train")[-3] or few.counts("held_out")[-3] < 1
    whole = opened([source], watched, 16, tmp_path / "cache")
    assert watched.backend.calls == len(whole.text.shards) > len(few.text.shards)


def order(prepared, split="train", seed=3, count=None):
    contexts = tokens.TokenContexts(prepared, split, seed)
    return contexts.read(0, len(contexts) if count is None else count)


def test_the_order_does_not_depend_on_what_is_prepared(tokenizer, source, tmp_path, small):
    need = {"train": 4000, "held_out": 16}
    before = opened([source], tokenizer, 16, tmp_path / "cache", need=need)
    assert not before.text.ended
    got, size = order(before), len(tokens.TokenContexts(before, "train", 3))
    opened([source], tokenizer, 16, tmp_path / "cache")
    after = opened([source], tokenizer, 16, tmp_path / "cache", need=need)
    assert len(tokens.TokenContexts(after, "train", 3)) == size == 4000 / 16
    np.testing.assert_array_equal(order(after), got)
    assert len({row.tobytes() for row in got}) == len(got)
    # One that is asked to read more reads the same first.
    longer = opened([source], tokenizer, 16, tmp_path / "cache", need=need | {"train": 6000})
    np.testing.assert_array_equal(order(longer)[: len(got)], got)
    name = lambda prepared: tokens.TokenContexts(prepared, "train", 3).order_name
    assert name(before) == name(longer) == "windows of 2 shards"
    # Whoever reads beyond what it said finds the same as one that said so.
    np.testing.assert_array_equal(order(before, count=len(order(longer))), order(longer))


def test_a_text_that_is_read_whole_is_shuffled_whole(tokenizer, source, tmp_path, small):
    """And if it ends, it is read again in another order; no context is left out, windows or not."""
    whole = opened([source], tokenizer, 16, tmp_path / "cache")
    n = len(tokens.TokenContexts(whole, "train", 3))
    rows = lambda prepared, start, stop: [
        row.tobytes() for row in tokens.TokenContexts(prepared, "train", 3).read(start, stop)
    ]
    plenty = opened([source], tokenizer, 16, tmp_path / "cache", need={"train": 16 * n + 1})
    assert rows(plenty, 0, 2 * n) == rows(whole, 0, 2 * n)
    exact = opened([source], tokenizer, 16, tmp_path / "cache", need={"train": 16 * n})
    first, second = rows(exact, 0, n), rows(exact, n, 2 * n)
    assert sorted(first) == sorted(second) == sorted(rows(whole, 0, n))
    assert first != second and first != rows(whole, 0, n)
    # Windows come in the order of the text.
    in_order = [row.tobytes() for row in tokens.TokenContexts(exact, "train", None).read(0, n)]
    assert sorted(first[:20]) != sorted(in_order[:20])
    window = tokens.TokenContexts(exact, "train", 3).windows[0]
    assert sorted(first[: len(window)]) == sorted(in_order[: len(window)])


def test_the_cache_is_where_the_environment_says(tokenizer, source, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tokens.prepare([source], tokenizer, 16).text.folder.parent == tmp_path / "mine" / "tokens"
    monkeypatch.delenv("JAXSAE_CACHE")
    assert tokens.default_cache() == str(tmp_path / "xdg" / "jaxsae")


@pytest.mark.parametrize("context, part", [(800, "held-out"), (100_000, "train")])
def test_text_that_is_too_short(tokenizer, source, tmp_path, context, part):
    message = f"{part} part does not fill one context of {context} tokens; give"
    with pytest.raises(BadInput, match=message):
        opened([source], tokenizer, context, tmp_path / "cache")


def test_a_text_without_a_held_out_part_is_refused_only_where_that_is_asked_for(tokenizer, source, tmp_path):
    whole = opened([source], tokenizer, 800, tmp_path / "cache", need={"all": 10**6})
    contexts = tokens.TokenContexts(whole, "all", 1)
    assert len(contexts) == len(order(opened([source], tokenizer, 800, tmp_path / "cache", need={"train": None}))) > 0
    for use in (
        lambda: opened([source], tokenizer, 800, tmp_path / "cache", need={"held_out": 10}),
        lambda: tokens.TokenContexts(whole, "held_out", 1),
    ):
        with pytest.raises(BadInput, match="held-out part does not fill one context of 800 tokens"):
            use()
    with pytest.raises(BadInput, match="too short: it does not fill one context of 100000 tokens"):
        opened([source], tokenizer, 100_000, tmp_path / "cache", need={"all": 10})


@pytest.fixture
def damaged(tmp_path):
    """100 documents, between which four lines are no documents."""
    lines = [json.dumps({"text": f"some words of text number {i}"}) for i in range(100)]
    for at, line in ((100, "[]"), (60, '{"text": 5}'), (20, "x"), (2, '{"words": 1}')):
        lines.insert(at, line)
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def test_bad_documents_are_reported_with_their_number_after_all_others_are_tokenised(
    tokenizer, damaged, tmp_path, small, capsys
):
    watched = watch(tokenizer, lambda n: None)
    message = (
        r"4 of 104 documents cannot be read: .*line 3: .*line 22: .*line 63: .*and 1 more\. .*--bad-documents skip"
    )
    for _ in range(2):
        with pytest.raises(BadInput, match=message):
            opened([damaged], watched, 4, tmp_path / "cache")
        assert watched.backend.calls > 1
    assert "line 3: every line must be" in capsys.readouterr().err
    calls = watched.backend.calls
    skipped = opened([damaged], watched, 4, tmp_path / "cache", bad_documents="skip")
    assert watched.backend.calls == calls and skipped.facts["text_bad_documents"] == 4
    assert "left out, 4 of 104 documents" in capsys.readouterr().err
    good = [f"some words of text number {i}" for i in range(100)]
    np.testing.assert_array_equal(
        order(skipped, seed=None), whole_documents(tokenizer, split_documents(good, "train"), 4)
    )


def test_bad_documents_behind_what_is_needed_do_no_harm(tokenizer, damaged, tmp_path, small):
    lines = Path(damaged).read_text().splitlines()
    Path(damaged).write_text("\n".join([*lines[3:21] * 20, "x"]))
    opened([damaged], tokenizer, 4, tmp_path / "cache", need={"train": 100})
    with pytest.raises(BadInput, match=r"1 of 361 documents cannot be read: .*line 361"):
        opened([damaged], tokenizer, 4, tmp_path / "cache", need={"train": None})


def test_chats_reach_the_shards_with_their_special_tokens(tokenizer, tmp_path, small, monkeypatch):
    monkeypatch.setattr(preparing, "render_chats", lambda t: lambda chat: "<|endoftext|>".join(chat))
    chats = [[f"number {i}", "<|endoftext|> again"] for i in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    prepared = tokens.prepare([f"{path}#messages"], tokenizer, 8, str(tmp_path / "cache"), processes=2)
    ids = tokenizer.encode_chats(["<|endoftext|>".join(chat) for chat in chats])
    assert all(row.count(tokenizer.end_of_text) == 2 for row in ids)
    stream = [i for number, row in enumerate(ids) if number % 20 != 19 for i in (tokenizer.end_of_text, *row)]
    np.testing.assert_array_equal(order(prepared, seed=None).ravel(), stream[: len(stream) // 8 * 8])


def write_ids(folder, name, rows):
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, rows)
    else:
        path.write_text("\n".join(json.dumps({"input_ids": list(map(int, row))}) for row in rows))
    return f"tokens:{path}"


def test_token_ids_are_contexts_without_a_tokenizer(tmp_path, small):
    rows = np.random.default_rng(0).integers(0, 50, (40, 30))
    for name in ("a.npy", "a.jsonl"):
        source = write_ids(tmp_path, name, rows)
        prepared = opened([source], None, 30, tmp_path / "cache", vocab_size=50)
        np.testing.assert_array_equal(order(prepared, seed=None), np.delete(rows, [19, 39], 0))
        np.testing.assert_array_equal(order(prepared, "held_out", None), rows[[19, 39]])
        # Rows are documents.
        longer = opened([source], None, 40, tmp_path / "cache", vocab_size=50, pack="documents")
        padded = np.pad(rows[[19, 39]], ((0, 0), (0, 10)), constant_values=-1)
        np.testing.assert_array_equal(order(longer, "held_out", None), padded)
    stream = np.random.default_rng(1).integers(0, 50, 1000)
    prepared = opened([write_ids(tmp_path, "b.npy", stream)], None, 10, tmp_path / "cache", vocab_size=50)
    np.testing.assert_array_equal(order(prepared, seed=None).ravel(), stream[:950])
    np.testing.assert_array_equal(order(prepared, "held_out", None).ravel(), stream[950:])
    with pytest.raises(BadInput, match="--bos needs the model's tokenizer"):
        opened([source], None, 10, tmp_path / "cache", vocab_size=50, bos=True)


@pytest.mark.parametrize("wrong", [-1, 50, 10**6])
def test_token_ids_outside_of_the_vocabulary_are_named(tmp_path, wrong):
    rows = np.zeros((30, 8), int)
    rows[3, 5] = wrong
    for name, place in (("a.npy", "row 4"), ("a.jsonl", "line 4")):
        source = write_ids(tmp_path, name, rows)
        with pytest.raises(BadInput, match=f"{name}, {place} holds token id {wrong}, .* vocabulary has 50 entries"):
            opened([source], None, 8, tmp_path / "cache", vocab_size=50)


def test_text_and_token_ids_are_not_mixed(tokenizer, source, tmp_path):
    with pytest.raises(BadInput, match="mixes text and token ids"):
        opened([source, "tokens:a.npy"], tokenizer, 8, tmp_path / "cache", vocab_size=600)
    with pytest.raises(BadInput, match="text input needs the model's tokenizer"):
        opened([source], None, 8, tmp_path / "cache", vocab_size=600)


@pytest.fixture
def folder(tokenizer, source, tmp_path):
    return opened([source], tokenizer, 16, tmp_path / "cache")


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
