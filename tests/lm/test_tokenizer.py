"""Tokenizers from folders, their packing against the plain way, padding."""

import itertools
import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tokenizers
from tokenizers import ByteLevelBPETokenizer

from jaxsae import lm as lms
from jaxsae.data import text
from jaxsae.errors import BadInput
from jaxsae.lm import tokenizer as module
from jaxsae.lm.tokenizer import END_OF_TEXT, make_tokenizer
from jaxsae.lm.weights import read_config
from tests.lm import tiny

TEXT = "Once upon a time, there was a naïve café.\n  Zwölf Boxkämpfer 👍 <tag> don't"


@pytest.fixture(scope="module")
def bpe():
    """A byte-level BPE of 280 entries: every byte has one, <|endoftext|> is entry 0."""
    tokenizer = ByteLevelBPETokenizer()
    special = ["<|endoftext|>"]
    tokenizer.train_from_iterator([TEXT] * 3, 280, 1, show_progress=False, special_tokens=special)
    return tokenizer


def model_beside(folder, vocab_size=280):
    """A model whose tokenizer's files are those in `folder`; its weights do not matter here."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny.config(vocab_size=vocab_size)))
    return replace(tiny.model(), folder=str(folder), config=read_config(folder))


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json and merges.txt"])
def test_a_tokenizer_loads_from_either_layout(tmp_path, bpe, layout):
    if layout == "tokenizer.json":
        bpe.save(str(tmp_path / "tokenizer.json"))
    else:
        bpe.save_model(str(tmp_path))
    tokenizer = lms.load_tokenizer(model_beside(tmp_path))
    assert tokenizer.end_of_text == bpe.token_to_id("<|endoftext|>")
    texts = [TEXT, "", " ", TEXT[::-1]]
    ids = tokenizer.encode(texts)
    assert ids == [bpe.encode(text).ids for text in texts]
    assert [tokenizer.decode(i) for i in ids] == texts
    assert tokenizer.fingerprint() == lms.load_tokenizer(model_beside(tmp_path)).fingerprint()


def test_another_vocabulary_has_another_fingerprint(tmp_path, bpe):
    other = ByteLevelBPETokenizer()
    special = ["<|endoftext|>"]
    other.train_from_iterator(["aaaa bbbb"], 260, 1, show_progress=False, special_tokens=special)
    prints = []
    for name, tokenizer in (("a", bpe), ("b", other)):
        lm = model_beside(tmp_path / name)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        prints.append(lms.load_tokenizer(lm).fingerprint())
    assert prints[0] != prints[1]


def test_the_real_model_has_only_vocab_and_merges(shared):
    folder = shared("models/gpt2-tinystories-3m")
    assert not (folder / "tokenizer.json").exists()
    lm = replace(tiny.model(), folder=str(folder), config=read_config(folder))
    tokenizer = lms.load_tokenizer(lm)
    text = "Once upon a time there was a little girl named Lily.\n"
    ids = tokenizer.encode([text])[0]
    assert tokenizer.end_of_text == 14018 == lm.config.vocab_size - 1
    assert tokenizer.decode(ids) == text and len(ids) < len(text) / 3


def test_end_of_text_is_else_the_end_of_sequence_token(tmp_path):
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT], 270, 1, show_progress=False, special_tokens=["<eos>"])
    lm = model_beside(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match=r"neither <\|endoftext\|> nor an end-of-sequence"):
        lms.load_tokenizer(lm)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about | {"eos_token": "<eos>"}))
    assert lms.load_tokenizer(lm).end_of_text == tokenizer.token_to_id("<eos>")


def test_a_model_without_a_folder_has_no_tokenizer():
    with pytest.raises(BadInput, match="token ids"):
        lms.load_tokenizer(replace(tiny.model(), folder=None))


@pytest.mark.parametrize("files", [(), ("vocab.json",), ("merges.txt",)], ids=str)
def test_missing_tokenizer_files_are_bad_input(tmp_path, bpe, files):
    # transformers would make up a tokenizer of one entry from config.json alone.
    lm = model_beside(tmp_path / "model")
    bpe.save_model(str(tmp_path))
    for name in files:
        shutil.copy(tmp_path / name, tmp_path / "model")
    with pytest.raises(BadInput, match=r"tokenizer\.json, or vocab\.json and merges\.txt"):
        lms.load_tokenizer(lm)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "nothing"}}'])
def test_a_broken_tokenizer_is_bad_input(tmp_path, content):
    lm = model_beside(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match="tokenizer"):
        lms.load_tokenizer(lm)


def test_a_tokenizer_must_fit_the_models_vocabulary(tmp_path, bpe):
    bpe.save(str(tmp_path / "tokenizer.json"))
    size = bpe.get_vocab_size()
    lms.load_tokenizer(model_beside(tmp_path, size))
    # A model may have spare entries, as padding to a multiple of 128 makes them.
    lms.load_tokenizer(model_beside(tmp_path, size + 100))
    with pytest.raises(BadInput, match=rf"up to {size - 1}.*{size - 1} entries"):
        lms.load_tokenizer(model_beside(tmp_path, size - 1))


# Packing.


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(600)


LENGTHS = [900, 1, 40, 2000, 300, 7, 5000, 0, 64]
DOCUMENTS = [document[:length] for document, length in zip(text.documents(["stdlib"]), LENGTHS)]


@pytest.mark.parametrize("characters", [1, 500, 2_000_000])
@pytest.mark.parametrize("context", [2, 16, 61])
def test_packing_equals_whole_documents_joined_and_cut(tokenizer, monkeypatch, characters, context):
    # Small batches and pieces: then documents and contexts lie across many of them.
    monkeypatch.setattr(module, "_batches", partial(module._batches, characters=characters))
    monkeypatch.setattr(module, "_pieces", partial(module._pieces, characters=100))
    got = list(tokenizer.pack(DOCUMENTS, context))
    np.testing.assert_array_equal(got, tiny.whole_documents(tokenizer, DOCUMENTS, context))
    assert all(row.dtype == np.int32 for row in got)


def test_packing_loses_less_than_one_context_and_decodes_to_the_text(tokenizer):
    stream = np.concatenate(list(tokenizer.pack(DOCUMENTS, 8)))
    joined = "".join(END_OF_TEXT + document for document in DOCUMENTS)
    got = tokenizer.decode(stream)
    assert joined.startswith(got) and len(tokenizer.encode([joined])[0]) - len(stream) < 8


@pytest.mark.parametrize("characters", [50, 700, 20_000])
def test_pieces_encode_to_the_tokens_of_the_whole_document(tokenizer, characters):
    document = tiny.library_text(120_000)
    rare = ["naïve été", "don't we'll", "漢字 かな", "x  y\n z", "a1 b 2 c", "½ π"]
    document += " ".join(rare * 200)
    pieces = list(module._pieces(document, characters))
    assert "".join(pieces) == document
    # Cuts are found soon in ordinary text, so that there is something to do in parallel.
    assert len(document) / characters / 4 < len(pieces) <= len(document) / characters
    (whole,) = tokenizer.encode([document])
    assert list(itertools.chain(*tokenizer.encode(pieces))) == whole


def test_text_that_cannot_be_cut_stays_whole():
    for document in ("漢" * 1000, "1 2 " * 300, " " * 1000, "", "a b", "a " * 200 + "b" * 1000):
        pieces = list(module._pieces(document, 50))
        assert "".join(pieces) == document
        for before, after in itertools.pairwise(pieces):
            assert before[-1].isalpha() and after[0] == " " and after[1].isalpha()


def sentencepiece(pre_tokenizer):
    """A tokenizer of letters as SentencePiece's: it puts a space before every text, and <bos> before every context."""
    letters = ["<eos>", "<bos>", "▁", *"abdehlorw"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({x: i for i, x in enumerate(letters)}, []))
    backend.add_special_tokens(["<eos>", "<bos>"])
    if pre_tokenizer:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    else:
        space = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        backend.normalizer = tokenizers.normalizers.Sequence(space)
    backend.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    return make_tokenizer(backend, "letters", {"eos_token": {"content": "<eos>"}})


@pytest.mark.parametrize("pre_tokenizer", [True, False], ids=["Metaspace", "normalizer"])
def test_a_tokenizer_that_begins_texts_begins_contexts_and_never_pieces(monkeypatch, pre_tokenizer):
    monkeypatch.setattr(module, "_pieces", partial(module._pieces, characters=10))
    tokenizer = sentencepiece(pre_tokenizer)
    assert (tokenizer.end_of_text, tokenizer.bos, tokenizer.in_pieces) == (0, 1, False)
    documents = ["hello world a b " * 50 + "a", "b hello", "", "world " * 30 + "b"]
    want = tiny.whole_documents(tokenizer, documents, 8)
    got = np.stack(list(tokenizer.pack(documents, 9)))
    assert got.dtype == np.int32 and (got[:, 0] == 1).all() and not (got[:, 1:] == 1).any()
    np.testing.assert_array_equal(got[:, 1:], want)
    # In pieces, each would begin with a space more, if a normalizer puts it there.
    in_pieces = np.stack(list(replace(tokenizer, in_pieces=True).pack(documents, 9)))[:, 1:]
    assert pre_tokenizer == np.array_equal(in_pieces, want)
    with pytest.raises(BadInput, match="no room"):
        next(tokenizer.pack(documents, 1))
    # tokenizer_config.json decides, if it says anything; else what the tokenizer itself puts before a text.
    record = lambda **about: make_tokenizer(tokenizer.backend, "letters", {"eos_token": "<eos>", **about})
    assert record().bos == 1 and record(add_bos_token=False, bos_token="<bos>").bos is None
    tokenizer.backend.post_processor = tokenizers.processors.ByteLevel()
    assert record().bos is None and record(add_bos_token=True, bos_token="<bos>").bos == 1


def test_only_gpt2s_own_pre_tokenizer_is_given_pieces(tokenizer):
    levels, parts = tokenizers.pre_tokenizers.ByteLevel, tokenizers.pre_tokenizers

    def in_pieces(pre_tokenizer, normalizer=None, added=()):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.pre_tokenizer = pre_tokenizer
        if normalizer is not None:
            backend.normalizer = normalizer
        backend.add_tokens([*added])
        return make_tokenizer(backend, "variant").in_pieces

    assert in_pieces(levels(add_prefix_space=False)) and in_pieces(levels(add_prefix_space=True))
    assert not in_pieces(levels(use_regex=False))
    assert not in_pieces(parts.Sequence([parts.Digits(), levels()]))
    assert not in_pieces(parts.Metaspace())
    assert not in_pieces(levels(), tokenizers.normalizers.NFKC())
    assert not in_pieces(levels(), added=["end of"])
    assert not in_pieces(levels(), added=[tokenizers.AddedToken("x", rstrip=True)])


def test_what_packs_otherwise_has_another_fingerprint(tokenizer):
    prints = {replace(tokenizer, **change).fingerprint() for change in ({}, {"bos": 3}, {"in_pieces": False})}
    assert len(prints) == 3
    assert tokenizer.fingerprint() == tokenizer.backend.to_str()


@pytest.mark.parametrize("folder", ["embedded", "saved"])
def test_fingerprints_are_those_of_transformers(folder, bpe, tmp_path):
    from transformers import AutoTokenizer

    lm = lms.load("embedded") if folder == "embedded" else model_beside(tmp_path)
    if folder == "saved":
        bpe.save_model(str(tmp_path))
        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(lm.folder), lms.load_tokenizer(lm)
    assert ours.fingerprint() == theirs.backend_tokenizer.to_str()
    ids = ours.encode([TEXT])
    assert ids == theirs([TEXT], add_special_tokens=False)["input_ids"] and ours.decode(ids[0]) == TEXT
    assert ours.bos is None and ours.in_pieces and ours.end_of_text == theirs.eos_token_id


def test_truncation_and_padding_of_a_file_are_left_out(bpe, tmp_path):
    whole = bpe.encode(TEXT).ids
    backend = tokenizers.Tokenizer.from_str(bpe.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=99)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert lms.load_tokenizer(model_beside(tmp_path)).encode([TEXT, ""]) == [whole, []]


def test_padding_is_on_the_side_asked_for(tokenizer):
    texts = ["one two three", "", "one"]
    rows, end = tokenizer.encode(texts), tokenizer.end_of_text
    T = len(rows[0])
    for side in ("right", "left"):
        tokens, mask = tokenizer.pad(texts, side)
        assert (tokens.dtype, mask.dtype, tokens.shape, mask.shape) == (np.int32, bool, (3, T), (3, T))
        assert [tokens[i, mask[i]].tolist() for i in range(3)] == rows and (tokens[~mask] == end).all()
        edge = mask[:, 0] if side == "right" else mask[:, -1]
        assert edge.tolist() == [True, False, True]
    np.testing.assert_array_equal(tokenizer.pad(texts)[1], tokenizer.pad(texts, "right")[1])
    assert tokenizer.pad([])[0].shape == (0, 0)
    with pytest.raises(BadInput, match="'middle'"):
        tokenizer.pad(texts, "middle")
    tokens, mask = replace(tokenizer, bos=7).pad(texts)
    assert (tokens[:, 0] == 7).all() and mask[:, 0].all() and tokens.shape == (3, T + 1)
