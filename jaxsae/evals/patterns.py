"""Explanations of latents as token patterns (N2G: Foote et al. 2023, as Gao et al. 2024, sec. 4.3 and released code,
use it), and what they predict.

A document on which a latent is active becomes a pattern: the shortest end of it on which the latent is at least half as
active, in which a token that can be replaced without halving the activation is a wildcard. The patterns of a latent
form a trie, keyed by token strings, the last token first:

    {" cat": {" the": {VALUE: 1.3}, WILDCARD: {START: {VALUE: 0.8}}}}

is active 1.3 on " cat" after " the", and 0.8 on " cat" as the second token of a context, after any other.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxsae.errors import BadInput

WILDCARD, START, VALUE = "token(*)", "token(^)", "<saliency>"
# The share of an activation that an end of the document must keep, and that replacing an important token takes away.
HALF = 0.5
# Partial matches that are followed at once.
WALKERS = 1 << 20


@dataclass(frozen=True)
class Document:
    """A context and the values of one latent on it; it is explained why the latent is active at token `index`."""

    tokens: list[str]
    ids: list[int]
    values: list[float]
    index: int

    def __post_init__(self):
        if not 0 <= self.index < len(self.ids) or not self.values[self.index] > 0:
            raise BadInput(
                f"a document of {len(self.ids)} tokens cannot be explained at index {self.index}: give the index of a "
                "token with a value above 0"
            )


def explain(documents: Sequence[Document], model: Callable, pad: tuple[int, str]) -> dict:
    """The trie of the documents of one latent. `model` gives the values of the latent on lists of token ids,
    list[list[int]] -> list[list[float]]; `pad` is the (id, string) of the token that others are replaced by.

        trie = explain([Document([" the", " cat"], [5, 9], [0.0, 1.3], 1)], model, (220, " _"))
        predict(trie, [" a", " cat"])
    """
    return explain_all([documents], lambda queries: [values[-1] for values in model([ids for _, ids in queries])], pad)[
        0
    ]


def explain_all(
    latents: Sequence[Sequence[Document]], ask: Callable, pad: tuple[int, str], longest: int | None = None
) -> list[dict]:
    """The trie of each latent from its documents. `ask` gives the value at the end of each of a list of (number of the
    latent, token ids): all documents of all latents ask together.

    Patterns have at most `longest` tokens: a document on which that is not enough gives none.
    """
    owners = [number for number, documents in enumerate(latents) for _ in documents]
    searches = [_search(document, pad, longest) for documents in latents for document in documents]
    patterns: list = [None] * len(searches)
    waiting = {i: next(search) for i, search in enumerate(searches)}
    while waiting:
        answers = iter(ask([(owners[i], ids) for i, queries in waiting.items() for ids in queries]))
        following = {}
        for i, queries in waiting.items():
            try:
                following[i] = searches[i].send([float(next(answers)) for _ in queries])
            except StopIteration as end:
                patterns[i] = end.value
        waiting = following
    tries: list[dict] = [{} for _ in latents]
    for owner, pattern in zip(owners, patterns):
        if pattern is not None:
            _insert(tries[owner], *pattern)
    return tries


def _search(document: Document, pad: tuple[int, str], longest: int | None) -> Generator:
    """Yields lists of token ids, is sent the latent's value at the end of each, and returns (keys, value): the pattern,
    the last token first. None if the latent is not active on the document by itself, or not on so short an end.
    """
    end, whole = document.index + 1, document.values[document.index]
    start = 0 if longest is None else max(0, end - longest)
    tokens, ids = (part[start:end] for part in (document.tokens, document.ids))
    length, value, tried = len(ids), None, 0
    while value is None and tried < len(ids):
        # Ends of 1 token, of 2 and 3, of 4 to 7 ...: few rounds, and at most twice as many as are needed.
        lengths = range(tried + 1, min(2 * tried + 1, len(ids)) + 1)
        answers = yield [ids[-some:] for some in lengths]
        reached = [i for i, answer in enumerate(answers) if answer / whole >= HALF]
        if reached:
            length, value = lengths[reached[0]], answers[reached[0]]
        tried = lengths[-1]
    if value is None:
        # The whole document, even if it says less by itself than where it was found.
        value = answers[-1]
        if start or not value > 0:
            return None
    tokens, ids = tokens[-length:], ids[-length:]
    replaced = [[*ids[:j], pad[0], *ids[j + 1 :]] for j in range(length)]
    padded, *without = yield [[pad[0], *ids], *replaced]
    keys = [token if 1 - answer / value >= HALF else WILDCARD for token, answer in zip(tokens, without)][::-1]
    return (keys if padded / whole >= HALF else [*keys, START]), value


def _insert(trie: dict, keys: Iterable[str], value: float):
    for key in keys:
        trie = trie.setdefault(key, {})
    trie[VALUE] = value


def predict(trie: dict, tokens: Sequence[str]) -> np.ndarray:
    """The value that the explanation gives to each token of a context, [T]; 0 where no pattern fits.

    From each token backwards an exact match goes before a wildcard, and the first pattern that ends is taken.
    """
    forest = Forest([trie])
    out = np.zeros(len(tokens))
    _, position, _, values = forest.predict(forest.numbers(tokens)[None])
    out[position] = values
    return out


class Forest:
    """Tries of many latents as arrays, which all tokens walk down together."""

    def __init__(self, tries: Sequence[dict]):
        self.strings: dict[str, int] = {}  # from 1; 0 is any other string
        self.roots = np.zeros(len(tries), np.int64)
        edges, wildcards, values, starts = [], [], [], []

        def add(trie: dict) -> int:
            node = len(values)
            values.append(trie.get(VALUE, np.nan))
            starts.append(trie.get(START, {}).get(VALUE, np.nan))
            wildcards.append(-1)
            for key, child in trie.items():
                if key == WILDCARD:
                    wildcards[node] = add(child)
                elif key not in (START, VALUE):
                    edges.append((node, self.strings.setdefault(key, len(self.strings) + 1), add(child)))
            return node

        for number, trie in enumerate(tries):
            self.roots[number] = add(trie)
        self.values, self.starts = np.array(values), np.array(starts)
        self.wildcards = np.array(wildcards, np.int64)
        # Edges sorted by (node, string), to be found by bisection.
        node, string, child = np.array(edges, np.int64).reshape(-1, 3).T
        keys = node * (len(self.strings) + 1) + string
        order = np.argsort(keys)
        self.keys, self.children = keys[order], child[order]
        # The tries whose patterns can end with each string, and those that can end with any.
        owner = np.full(len(values), -1)
        owner[self.roots] = np.arange(len(tries))
        first = owner[node] >= 0
        order = np.flatnonzero(first)[np.argsort(string[first], kind="stable")]
        self.ending, self.ending_of = (
            owner[node[order]],
            np.searchsorted(string[order], np.arange(len(self.strings) + 2)),
        )
        self.any_ending = np.flatnonzero(self.wildcards[self.roots] >= 0)

    def numbers(self, tokens: Iterable[str]) -> np.ndarray:
        """The number of each token string, as `predict` reads them."""
        return np.array([self.strings.get(token, 0) for token in tokens], np.int64)

    def predict(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(context, position, trie, value) of the values above 0, [M] each, in contexts of string numbers [C, T]."""
        C, T = contexts.shape
        flat = contexts.reshape(-1)
        ending = np.diff(self.ending_of)[flat] + len(self.any_ending)
        parts, done = [], 0
        cumulated = np.cumsum(ending)
        while done < C * T:
            before = cumulated[done - 1] if done else 0
            stop = max(done + 1, int(np.searchsorted(cumulated, before + WALKERS, side="right")))
            parts.append(self._walk(contexts, np.arange(done, stop)))
            done = stop
        position, trie, value = (np.concatenate(part) for part in zip(*parts)) if parts else (np.zeros(0, int),) * 3
        return position // T, position % T, trie, value

    def _walk(self, contexts: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token, trie, value) for the tokens numbered `end` of all contexts."""
        T, flat = contexts.shape[1], contexts.reshape(-1)
        count = np.diff(self.ending_of)[flat[end]]
        exact = np.repeat(end, count)
        offset = np.arange(len(exact)) - np.repeat(np.cumsum(count) - count, count)
        trie = self.ending[self.ending_of[flat[exact]] + offset]
        token = np.concatenate([exact, np.repeat(end, len(self.any_ending))])
        trie = np.concatenate([trie, np.tile(self.any_ending, len(end))])
        node, out = self.roots[trie], []
        # Tries that can end with this string and with any one are there twice; the exact match goes first.
        twice = np.concatenate([np.zeros(len(exact), bool), self._child(node, flat[token])[len(exact) :] >= 0])
        token, trie, node = token[~twice], trie[~twice], node[~twice]
        back = np.zeros(len(token), np.int64)
        while len(token):
            string = flat[token - back]
            child = self._child(node, string)
            node = np.where(child >= 0, child, self.wildcards[node])
            at_start = back == token % T
            value = np.where(node >= 0, self.values[node], 0)
            value = np.where(np.isnan(value) & at_start, np.nan_to_num(self.starts[node]), value)
            out.append((token[value > 0], trie[value > 0], value[value > 0]))
            on = np.isnan(value)
            token, trie, node, back = token[on], trie[on], node[on], back[on] + 1
        return tuple(np.concatenate(part) for part in zip(*out)) if out else (np.zeros(0, int),) * 3

    def _child(self, node: np.ndarray, string: np.ndarray) -> np.ndarray:
        """The node after each of `node` for an exact match of `string`, -1 if there is none."""
        if not len(self.keys):
            return np.full(len(node), -1)
        keys = node * (len(self.strings) + 1) + string
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.children[at], -1)
