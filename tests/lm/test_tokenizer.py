"""Tokenizers from folders, their packing against the plain way, padding."""

import itertools
import json
import re
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
from jaxsae.lm.tokenizer import END_OF_TEXT, make_tokenizer, render_chats
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
    # Its end-of-text token is one that every text needs.
    ends = tokenizers.Tokenizer.from_str(bpe.to_str())
    ends.add_special_tokens(["<end>"])
    ends.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    facts = json.loads((tmp_path / "tokenizer.json").read_text())
    facts["model"]["vocab"] = {k.replace("<|endoftext|>", "<|x|>"): v for k, v in facts["model"]["vocab"].items()}
    facts["added_tokens"] = [t for t in facts["added_tokens"] if t["content"] == "<end>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    with pytest.raises(BadInput, match=rf"ends texts with token {size}, but the model's vocabulary has {size} entries"):
        lms.load_tokenizer(model_beside(tmp_path, size))


def test_a_tokenizer_with_tokens_behind_the_models_vocabulary_is_refused_only_where_one_occurs(tmp_path, bpe):
    backend = tokenizers.Tokenizer.from_str(bpe.to_str())
    backend.add_special_tokens(["[PAD]"])
    backend.add_tokens(["<tag>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    size = bpe.get_vocab_size()
    tokenizer = lms.load_tokenizer(model_beside(tmp_path, size))
    assert tokenizer.encode(["Once upon"]) == [bpe.encode("Once upon").ids]
    # A special token is text, and so does no harm; this added one is always a token.
    assert max(tokenizer.encode(["a [PAD] b"])[0]) < size
    with pytest.raises(BadInput, match=rf"'<tag>', token {size + 1} .* vocabulary has {size} entries"):
        tokenizer.encode(["fine", "a <tag> b"])
    assert lms.load_tokenizer(model_beside(tmp_path, size + 2)).encode(["<tag>"]) == [[size + 1]]


def test_special_tokens_written_in_a_text_are_text(tmp_path, bpe, shared):
    """As GPT-2's own byte-level BPE has it, which knows no special tokens: here in plain Python."""
    folder = shared("data/gpt2-tokenizer")
    vocabulary, merges = json.loads((folder / "encoder.json").read_text()), (folder / "vocab.bpe").read_text()
    gpt2 = tmp_path / "gpt2"
    lm = model_beside(gpt2, len(vocabulary))
    shutil.copy(folder / "encoder.json", gpt2 / "vocab.json")
    shutil.copy(folder / "vocab.bpe", gpt2 / "merges.txt")
    tokenizer = lms.load_tokenizer(lm)
    texts = ["a<|endoftext|>b", "<|endoftext|>", "x <|endoftext|> <|endoftext|>\n don't"]
    for written, ids in zip(texts, tokenizer.encode(texts)):
        assert ids == gpt2_bpe(written, vocabulary, merges.split("\n")[1:])
        assert tokenizer.end_of_text == 50256 not in ids and tokenizer.decode(ids) == written
    # Also where a file forgets to say that the token is special.
    facts = json.loads(bpe.to_str())
    (token,) = [t for t in facts["added_tokens"] if t["content"] == END_OF_TEXT]
    token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts))
    assert 0 not in lms.load_tokenizer(model_beside(tmp_path)).encode(["a<|endoftext|>b"])[0]


def gpt2_bpe(text, vocabulary, merges):
    """GPT-2's encoder.py in short: words of ASCII text, bytes as characters, the earliest merge first."""
    ranks = {tuple(merge.split()): i for i, merge in enumerate(merges) if merge}
    ids = []
    for word in re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", text):
        parts = [{" ": "Ġ", "\n": "Ċ"}.get(c, c) for c in word]
        while pairs := [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]:
            _, i = min(pairs)
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        ids += [vocabulary[part] for part in parts]
    return ids


# Packing.


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(600)


LENGTHS = [900, 1, 40, 2000, 300, 7, 5000, 0, 64]
DOCUMENTS = [document[:length] for document, length in zip(text.documents(["stdlib"]), LENGTHS)]


@pytest.mark.parametrize("characters", [50, 700, 20_000])
def test_documents_in_pieces_encode_as_whole_ones(tokenizer, monkeypatch, characters):
    monkeypatch.setattr(module, "pieces", partial(module.pieces, characters=characters))
    got = tokenizer.encode_documents(DOCUMENTS)
    assert [row.tolist() for row in got] == [tokenizer.encode([document])[0] for document in DOCUMENTS]
    assert all(row.dtype == np.int32 for row in got)


@pytest.mark.parametrize("characters", [50, 700, 20_000])
def test_pieces_encode_to_the_tokens_of_the_whole_document(tokenizer, characters):
    document = tiny.library_text(120_000)
    rare = ["naïve été", "don't we'll", "漢字 かな", "x  y\n z", "a1 b 2 c", "½ π"]
    document += " ".join(rare * 200)
    pieces = list(module.pieces(document, characters))
    assert "".join(pieces) == document
    # Cuts are found soon in ordinary text, so that there is something to do in parallel.
    assert len(document) / characters / 4 < len(pieces) <= len(document) / characters
    (whole,) = tokenizer.encode([document])
    assert list(itertools.chain(*tokenizer.encode(pieces))) == whole


def test_text_that_cannot_be_cut_stays_whole():
    for document in ("漢" * 1000, "1 2 " * 300, " " * 1000, "", "a b", "a " * 200 + "b" * 1000):
        pieces = list(module.pieces(document, 50))
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
    monkeypatch.setattr(module, "pieces", partial(module.pieces, characters=10))
    tokenizer = sentencepiece(pre_tokenizer)
    assert (tokenizer.end_of_text, tokenizer.bos, tokenizer.start, tokenizer.in_pieces) == (0, 1, 1, False)
    documents = ["hello world a b " * 50 + "a", "b hello", "", "world " * 30 + "b"]
    want = tokenizer.encode(documents)
    assert [row.tolist() for row in tokenizer.encode_documents(documents)] == want
    # In pieces, each would begin with a space more, if a normalizer puts it there.
    in_pieces = replace(tokenizer, in_pieces=True).encode_documents(documents)
    assert pre_tokenizer == ([row.tolist() for row in in_pieces] == want)
    # tokenizer_config.json decides, if it says anything; else what the tokenizer itself puts before a text.
    record = lambda **about: make_tokenizer(tokenizer.backend, "letters", {"eos_token": "<eos>", **about})
    assert record().bos == 1 and record(add_bos_token=False, bos_token="<bos>").bos is None
    # What --bos puts: the token that is named, or the end-of-text token.
    assert record(add_bos_token=False, bos_token="<bos>").start == 1
    tokenizer.backend.post_processor = tokenizers.processors.ByteLevel()
    assert record().bos is None and record().start == 0 and record(add_bos_token=True, bos_token="<bos>").bos == 1


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


def test_chats_are_made_texts_by_the_template_and_their_special_tokens_are_tokens(bpe, tmp_path):
    pytest.importorskip("jinja2")
    backend = tokenizers.Tokenizer.from_str(bpe.to_str())
    backend.add_special_tokens(["<user>", "<bot>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    tokenizer = lms.load_tokenizer(model_beside(tmp_path, 300))
    with pytest.raises(BadInput, match="has no chat template"):
        render_chats(tokenizer)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": template}))
    tokenizer = lms.load_tokenizer(model_beside(tmp_path, 300))
    render = render_chats(tokenizer)
    text = render([{"role": "user", "content": " Once"}, {"role": "bot", "content": "upon"}])
    assert text == "<user>Once<|endoftext|><bot>upon<|endoftext|>"
    user, bot = backend.token_to_id("<user>"), backend.token_to_id("<bot>")
    want = [user, *bpe.encode("Once").ids, 0, bot, *bpe.encode("upon").ids, 0]
    assert tokenizer.encode_chats([text]) == [want]
    # After it, text is text again.
    assert user not in tokenizer.encode([text])[0]
    with pytest.raises(ValueError, match="holds the special token <bot> as text"):
        render([{"role": "user", "content": "a <bot> b"}])
    for messages in ([{"content": "a"}], ["a"], [1]):
        with pytest.raises(ValueError, match='"role" and "content"'):
            render(messages)


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


LEVELS, FIRST = tokenizers.processors.ByteLevel(), [("<bos>", 1)]
TEMPLATE = tokenizers.processors.TemplateProcessing("<bos> $A", None, FIRST)
BOS = {"bos_token": "<bos>", "eos_token": "<eos>"}
# How the files of families say what begins a text: the post-processor, tokenizer_config.json, and whether it is <bos>.
FAMILIES = {
    "Llama 2, Gemma": (TEMPLATE, {**BOS, "add_bos_token": True, "add_eos_token": False}, True),
    "Llama 3": (tokenizers.processors.Sequence([LEVELS, TEMPLATE]), BOS, True),
    "Qwen": (LEVELS, {**BOS, "bos_token": None, "add_bos_token": False}, False),
    "GPT-2, Pythia": (LEVELS, {**BOS, "bos_token": "<eos>", "add_prefix_space": False}, False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_begin_with_bos_where_the_texts_of_transformers_do(tmp_path, family):
    from transformers import AutoTokenizer

    post_processor, about, begins = FAMILIES[family]
    backend = sentencepiece(True).backend
    backend.post_processor = post_processor
    backend.save(str(tmp_path / "tokenizer.json"))
    about = about | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    tokenizer = lms.load_tokenizer(model_beside(tmp_path))
    assert tokenizer.bos == (1 if begins else None) and tokenizer.end_of_text == 0
    theirs = AutoTokenizer.from_pretrained(tmp_path)("hello world")["input_ids"]
    assert theirs == [1] * begins + tokenizer.encode(["hello world"])[0]
    # A chat's template may begin with it; contexts do so already.
    chats = tokenizer.encode_chats(["<bos>hello", "hello<bos>", ""])
    assert [ids.count(1) for ids in chats] == [1 - begins, 1, 0]


def test_a_tokenizer_that_begins_texts_must_say_with_what(tmp_path, bpe):
    bpe.save(str(tmp_path / "tokenizer.json"))
    for token in (None, "<s>"):
        about = {"eos_token": END_OF_TEXT, "add_bos_token": True, "bos_token": token}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
        with pytest.raises(BadInput, match=f"says add_bos_token, but its bos_token is {token!r}.*add_bos_token false"):
            lms.load_tokenizer(model_beside(tmp_path))


def test_a_sentencepiece_model_alone_is_refused_with_the_way_out(tmp_path):
    lm = model_beside(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e")
    with pytest.raises(BadInput, match=r"tokenizer\.model alone.*save_pretrained.*sentencepiece"):
        lms.load_tokenizer(lm)
