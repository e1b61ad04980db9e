"""Names of special tokens as token ids."""

import json
import shutil

import pytest

from jaxsae import lm as lms
from jaxsae.errors import BadInput


@pytest.fixture(scope="module")
def folder(tiny_lm, tmp_path_factory):
    """The tiny model, whose tokenizer says only where a text ends."""
    return shutil.copytree(tiny_lm, tmp_path_factory.mktemp("lm") / "lm")


def ids(folder, *names, tokenizer={}, model={}):
    """The ids of names with other entries in tokenizer_config.json and config.json."""
    for name, entries in (("tokenizer_config.json", tokenizer), ("config.json", model)):
        known = json.loads((folder / name).read_text())
        known = {k: v for k, v in known.items() if not k.endswith(("_token", "_token_id"))}
        (folder / name).write_text(json.dumps(known | entries))
    return lms.token_ids(lms.load(str(folder)), names)


def test_names_are_those_of_the_tokenizer_and_then_of_the_model(folder):
    end = lms.load_tokenizer(lms.load(str(folder))).end_of_text
    assert ids(folder, "eos") == (end,)
    assert ids(folder, "eos", "9", "3", "9") == tuple(sorted((3, 9, end)))
    said = {"bos_token": {"content": "!"}, "eos_token": "a"}
    tokenizer = lms.load_tokenizer(lms.load(str(folder)))
    bos, eos = (tokenizer.backend.token_to_id(token) for token in "!a")
    assert ids(folder, "bos", "eos", tokenizer=said) == tuple(sorted((bos, eos)))
    assert ids(folder, "bos", "pad", model={"bos_token_id": 5, "pad_token_id": [6, 7]}) == (5, 6)


def test_a_name_without_a_token_leaves_out_nothing_and_says_so(folder, capsys):
    assert ids(folder, "bos", "pad") == ()
    assert capsys.readouterr().err.count("--skip-tokens") == 1


def test_an_id_beyond_the_vocabulary_is_refused(folder):
    size = lms.load(str(folder)).config.vocab_size
    with pytest.raises(BadInput, match=f"--skip-tokens {size} is outside .* ids go from 0 to {size - 1}"):
        ids(folder, str(size))
