"""Language models of counts: what the next token is without any network. V vocabulary.

p(b) = (c(b) + 1) / (N + V), and after a: p(b | a) = (c(a, b) + D(a) p(b)) / (c(a) + D(a)), where D(a) is the number of
different tokens that were seen after a (Witten and Bell 1991).
"""

from collections.abc import Iterable

import numpy as np


class Bigrams:
    """Counts of a text: arrays of contexts [c, T], negative at places that hold no token."""

    def __init__(self, texts: Iterable[np.ndarray], vocabulary: int):
        self.vocabulary = vocabulary
        single, keys, counts = np.zeros(vocabulary, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
        for tokens in texts:
            tokens = np.asarray(tokens, np.int64)
            before, after = pairs(tokens)
            # Of next tokens alone, as the pairs are.
            single += np.bincount(after, minlength=vocabulary)
            new, times = np.unique(before * vocabulary + after, return_counts=True)
            keys, at = np.unique(np.concatenate([keys, new]), return_inverse=True)
            counts = np.bincount(at, np.concatenate([counts, times]), len(keys)).astype(np.int64)
        self.keys, self.counts = keys, counts
        self.single, self.tokens = single, int(single.sum())
        self.seen = np.bincount(keys // vocabulary, counts, vocabulary)
        self.different = np.bincount(keys // vocabulary, minlength=vocabulary)

    def unigram(self, after: np.ndarray) -> np.ndarray:
        """p(after), [M]."""
        return (self.single[after] + 1) / (self.tokens + self.vocabulary)

    def bigram(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """p(after | before), [M] each."""
        keys = before * self.vocabulary + after
        at = np.minimum(np.searchsorted(self.keys, keys), max(0, len(self.keys) - 1))
        count = np.where(self.keys[at] == keys, self.counts[at], 0) if len(self.keys) else np.zeros(len(keys))
        seen, different, rest = self.seen[before], self.different[before], self.unigram(after)
        return np.where(seen > 0, (count + different * rest) / np.maximum(seen + different, 1), rest)


def pairs(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(each token that has a next one, that next one) of contexts [c, T], negative at places that hold no token."""
    real = (tokens[:, :-1] >= 0) & (tokens[:, 1:] >= 0)
    return tokens[:, :-1][real].astype(np.int64), tokens[:, 1:][real].astype(np.int64)
