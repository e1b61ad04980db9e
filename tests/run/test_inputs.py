"""What a run reads: text or token ids, as far as it needs them."""

import shutil

import numpy as np
import pytest

from jaxsae.data.config import DataConfig
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.lm.config import LMConfig
from jaxsae.run.inputs import open_inputs


def open_on(lm, need=None, **data):
    return open_inputs(LMConfig(lm=str(lm)), DataConfig(**data), lambda d: make_mesh(1, 1), need=need)


@pytest.fixture
def without_tokenizer(tiny_lm, tmp_path):
    folder = shutil.copytree(tiny_lm, tmp_path / "lm")
    (folder / "tokenizer.json").unlink()
    return folder


def test_token_ids_are_read_by_a_model_without_a_tokenizer(without_tokenizer, tmp_path):
    rows = np.random.default_rng(0).integers(0, 400, (60, 16))
    np.save(tmp_path / "ids.npy", rows)
    cache, source = str(tmp_path / "cache"), f"tokens:{tmp_path}/ids.npy"
    inputs = open_on(without_tokenizer, text=(source,), context=16, cache=cache)
    np.testing.assert_array_equal(inputs.source("held_out", None).host(0, 3), rows[19::20])
    assert inputs.facts["text_documents"] == 60 and inputs.facts["text_tokens"] == rows.size
    with pytest.raises(BadInput, match="holds no tokenizer"):
        open_on(without_tokenizer, text=(source,), context=16, cache=cache, bos=True)
    with pytest.raises(BadInput, match=r"holds no tokenizer.*--text tokens:FILE\.npy"):
        open_on(without_tokenizer, text=("stdlib",), context=16, cache=cache)
    rows[40, 3] = 400
    np.save(tmp_path / "ids.npy", rows)
    with pytest.raises(BadInput, match=r"row 41 holds token id 400, .* vocabulary has 400 entries"):
        open_on(without_tokenizer, text=(source,), context=16, cache=cache)


def test_a_text_without_a_held_out_part_can_be_evaluated_whole(tiny_lm, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("some words of a text " * 30 + "\n<|endoftext|>\nfew words")
    data = {"text": (str(path),), "context": 32, "cache": str(tmp_path / "cache")}
    inputs = open_on(tiny_lm, {"all": 64}, **data)
    assert len(inputs.source("all", 1)) > 0
    with pytest.raises(BadInput, match="held-out part does not fill one context of 32 tokens"):
        open_on(tiny_lm, {"train": 64, "held_out": 64}, **data)


def test_padding_and_bos_come_as_they_are_asked_for(tiny_lm, tiny_text, tmp_path):
    data = {"text": (str(tiny_text),), "context": 64, "cache": str(tmp_path / "cache"), "documents": 10}
    host = open_on(tiny_lm, pack="documents", bos=True, **data).source("train", 0).host(0, 40)
    end = 0  # <|endoftext|> of tiny_lm, which names no BOS token
    assert (host[:, 0] == end).all() and (host[:, 1] != end).all() and (host == -1).any()
    assert not (host[:, :-1] == -1)[host[:, 1:] != -1].any()
