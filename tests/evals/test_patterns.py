"""Token patterns: the tests of the released code, and a plain walk down the trie as reference."""

import numpy as np
import pytest

import jaxsae
from jaxsae.evals import n2g
from jaxsae.evals.patterns import START, VALUE, WILDCARD, Forest, explain_all

PAD = (4, "e")
V1 = {VALUE: 1.0}


def document(text, index):
    return n2g.Document(list(text), [ord(token) - ord("a") for token in text], [1.0] * len(text), index)


def each(value):
    """A model from a function of (ids, position) -> whether the latent is active."""
    return lambda queries: [[float(value(ids, i)) for i in range(len(ids))] for ids in queries]


A, C = 0, 2
CASES = {
    "at position 0 only": (
        each(lambda ids, i: i == 0),
        [("abc", 0), ("bcd", 0)],
        {WILDCARD: {START: V1}},
        {"abc": [1, 0, 0], "cba": [1, 0, 0]},
    ),
    "on c": (
        each(lambda ids, i: ids[i] == C),
        [("abc", 2), ("bcd", 1)],
        {"c": V1},
        {"bc": [0, 1], "aaa": [0, 0, 0], "cbc": [1, 0, 1]},
    ),
    "on c after an a": (
        each(lambda ids, i: ids[i] == C and A in ids[:i]),
        [("abc", 2), ("bac", 2), ("acd", 1)],
        {"c": {WILDCARD: {"a": V1}, "a": V1}},
        {"bc": [0, 0], "ac": [0, 1], "aecac": [0, 0, 1, 0, 1], "abbc": [0, 0, 0, 0]},
    ),
    "never": (each(lambda ids, i: 0), [], {}, {"abc": [0, 0, 0]}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cases_of_the_released_code(name):
    model, documents, trie, predictions = CASES[name]
    have = n2g.explain([document(*d) for d in documents], model, PAD)
    assert have == trie
    for tokens, values in predictions.items():
        np.testing.assert_array_equal(n2g.predict(have, list(tokens)), values)


def plain_search(ids, tokens, whole, value_of, pad):
    """The algorithm as the paper's code has it, one question after the other."""
    for start in reversed(range(len(ids))):
        value = value_of(ids[start:])
        if value / whole >= 0.5:
            break
    else:
        start = 0
    if value <= 0:
        return None
    ids, tokens = ids[start:], tokens[start:]
    can_pad = value_of([pad[0], *ids]) / whole >= 0.5
    keys = []
    for j in range(len(ids)):
        saliency = 1 - value_of([*ids[:j], pad[0], *ids[j + 1 :]]) / value
        keys.append(tokens[j] if saliency >= 0.5 else WILDCARD)
    return keys[::-1] + ([] if can_pad else [START]), value


def plain_predict(trie, tokens):
    out = []
    for i in range(len(tokens)):
        node, value = trie, 0
        for j in range(i, -1, -1):
            node = node[tokens[j]] if tokens[j] in node else node.get(WILDCARD)
            if node is None:
                break
            if VALUE in node:
                value = node[VALUE]
                break
            if j == 0 and START in node:
                value = node[START][VALUE]
        out.append(value)
    return out


def random_model(seed):
    """A latent that reads the last five tokens and how far the start is, with values from 0 to about 2."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(5, 6)) * [[3.0], [2], [1.5], [1], [0.5]]

    def value(ids):
        score = sum(weights[back, token] for back, token in enumerate(ids[::-1][:5]))
        return max(0.0, float(score + (0.7 if len(ids) < 4 else 0)))

    return value


@pytest.mark.parametrize("seed", range(3))
def test_all_latents_at_once_equal_the_algorithm_one_document_after_the_other(seed):
    random = np.random.default_rng(seed)
    models, latents, rounds = [random_model(10 * seed + i) for i in range(4)], [], []
    tries = []
    for value in models:
        documents, trie = [], {}
        for _ in range(12):
            ids = random.integers(6, size=random.integers(1, 12)).tolist()
            index = int(random.integers(len(ids)))
            if (whole := value(ids[: index + 1])) > 0:
                tokens = ["abcdef"[i] for i in ids]
                documents.append(n2g.Document(tokens, ids, [whole] * len(ids), index))
                keys, found = plain_search(ids[: index + 1], tokens[: index + 1], whole, value, PAD)
                node = trie
                for key in keys:
                    node = node.setdefault(key, {})
                node[VALUE] = found
        latents.append(documents)
        tries.append(trie)

    def ask(queries):
        rounds.append(len(queries))
        return [models[latent](ids) for latent, ids in queries]

    assert explain_all(latents, ask, PAD) == tries
    assert len(rounds) <= 5
    # What they predict, of all contexts and latents together.
    forest = Forest(tries)
    contexts = random.integers(7, size=(20, 9))
    strings = ["a", "b", "c", "d", "e", "f", "g"]
    context, position, trie, value = forest.predict(forest.numbers(strings)[contexts])
    have = np.zeros((4, *contexts.shape))
    have[trie, context, position] = value
    want = [[plain_predict(trie, [strings[i] for i in row]) for row in contexts] for trie in tries]
    np.testing.assert_array_equal(have, want)
    assert len(value) == (have > 0).sum() > 30


def test_many_tokens_are_predicted_in_parts(monkeypatch):
    trie = {"c": {"a": V1, WILDCARD: {START: {VALUE: 2.0}}}, WILDCARD: {"b": {VALUE: 3.0}}}
    tokens = list("bcbcaacabbcaabcccacba")
    want = plain_predict(trie, tokens)
    assert len(set(want)) == 4
    for walkers in (1, 5, 1 << 20):
        monkeypatch.setattr("jaxsae.evals.patterns.WALKERS", walkers)
        np.testing.assert_array_equal(n2g.predict(trie, tokens), want)
    assert len(n2g.predict(trie, [])) == 0


def test_a_document_on_which_the_latent_is_not_active_is_refused():
    for values, index in (([0.0, 0.0], 1), ([1.0, 1.0], 2)):
        with pytest.raises(jaxsae.BadInput, match=f"a document of 2 tokens cannot be explained at index {index}: give"):
            n2g.Document(["a", "b"], [0, 1], values, index)
