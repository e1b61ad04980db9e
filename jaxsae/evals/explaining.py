"""Token patterns of an autoencoder's latents, on text. A latents that are explained, b contexts, T tokens.

The contexts of a subject are halved: explanations come from the first half, and are judged on the second.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

from jaxsae.distributed.mesh import place
from jaxsae.errors import BadInput
from jaxsae.evals import latents
from jaxsae.evals.patterns import Document, Forest, explain_all
from jaxsae.evals.subject import Batch, Subject, at_positions, flat
from jaxsae.lm.tokenizer import Tokenizer
from jaxsae.sae.layout import REPLICATED, TOKENS

# Tokens of questions that a device reads at once.
TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Explanations:
    """The tries of some latents of a subject."""

    latents: np.ndarray  # [A]
    tries: list[dict]
    strings: list[str]  # of the vocabulary
    activations: int  # documents that they are made from
    share: float  # of the sum of all squared values that these latents have

    @cached_property
    def forest(self) -> Forest:
        return Forest(self.tries)

    @cached_property
    def numbers(self) -> np.ndarray:
        """The number of each token of the vocabulary in the forest."""
        return self.forest.numbers(self.strings)

    def simulate(self, ids: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token, number of the latent among those explained, value) at the tokens in `kept` [b, T] of contexts
        `ids` [b, T]; tokens are numbered through all contexts.
        """
        context, position, number, value = self.forest.predict(self.numbers[ids])
        token = context * ids.shape[1] + position
        at = kept.reshape(-1)[token]
        return token[at], number[at], value[at]


def halves(subject: Subject, tokens: int) -> tuple[Subject, range, range]:
    """The subject on at most `tokens` tokens, and both halves of its contexts."""
    subject = replace(subject, tokens=min(tokens, subject.tokens or tokens))
    half = subject.contexts // 2
    return subject, range(half), range(half, subject.contexts)


def explain_latents(
    subject: Subject, contexts: range, documents: int, length: int, seed: int, most: int, largest: bool = False
) -> Explanations:
    """Explanations of at most `most` of the latents that are active in `contexts`, drawn at random, or those with the
    `largest` sums of squared values; each from at most `documents` activations drawn at random, by patterns of at most
    `length` tokens.
    """
    tokenizer = subject.tokenizer()
    strings, T = token_strings(tokenizer, subject.lm.config.vocab_size), subject.source.rows
    latent, token, value, ids, squares = _sampled(subject, contexts, documents, seed)
    active = np.flatnonzero(squares)
    if largest:
        chosen = np.sort(active[np.argsort(-squares[active], kind="stable")[:most]])
    else:
        chosen = np.sort(np.random.default_rng(seed).permutation(active)[:most])
    # Questions may begin with two tokens more.
    length = min(length, subject.lm.config.n_ctx - 2)

    def document(token: int, value: float) -> Document:
        context, index = divmod(token, T)
        # One token more says that the context goes on.
        part = ids[context, max(0, index - length) : index + 1].tolist()
        return Document([strings[i] for i in part], part, [0.0] * (len(part) - 1) + [value], len(part) - 1)

    # Sorted by latent.
    start, stop = np.searchsorted(latent, chosen), np.searchsorted(latent, chosen, side="right")
    of_latents = [
        [document(int(token[i]), float(value[i])) for i in range(first, last)] for first, last in zip(start, stop)
    ]
    with tqdm(desc="explaining", unit="question", disable=subject.quiet, leave=False) as bar:
        ask = _asking(subject, chosen, tokenizer.bos, min(length, T) + 2, bar.update)
        tries = explain_all(of_latents, ask, _pad(tokenizer), length)
    share = float(squares[chosen].sum() / squares.sum()) if len(chosen) else 0.0
    return Explanations(chosen, tries, strings, sum(map(len, of_latents)), share)


def _sampled(subject: Subject, contexts: range, documents: int, seed: int) -> tuple[np.ndarray, ...]:
    """At most `documents` random activations of each latent, as (latent, token, value) sorted by latent, the token ids
    [contexts, T], and the sum of squared values of each latent [n]. What is drawn depends neither on batches nor on the
    mesh.
    """
    n, T, ids, first = subject.sae.n, subject.source.rows, [], 0
    squares = np.zeros(n)
    sample = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.uint64))
    for batch in subject.batches(title="activations to explain", among=contexts):
        of_batch, kept = on_host(subject, batch)
        token, latent, value = activations(subject, batch, kept)
        token += first * T
        squares += np.bincount(latent, value * value, n)
        key = _scrambled(token.astype(np.uint64) * np.uint64(n) + latent.astype(np.uint64), seed)
        sample = tuple(np.concatenate(pair) for pair in zip(sample, (latent, token, value, key)))
        order = np.lexsort((sample[3], sample[0]))
        sample = tuple(part[order] for part in sample)
        rank = np.arange(len(order)) - np.searchsorted(sample[0], sample[0])
        sample = tuple(part[rank < documents] for part in sample)
        ids.append(of_batch)
        first += len(of_batch)
    return *sample[:3], np.concatenate(ids), squares


def _scrambled(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in a random order: uint64 -> uint64, one to one (splitmix64)."""
    x = numbers + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def on_host(subject: Subject, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, which of them are kept) of the contexts of a batch that count, [size, T] each."""
    everywhere = lambda a: np.asarray(jax.reshard(a, REPLICATED))[: batch.size]
    return everywhere(subject.text(batch)[0]), everywhere(batch.kept)


def activations(subject: Subject, batch: Batch, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token, latent, value) of all values above 0 at the tokens in `kept` [size, T] of a batch."""
    code = latents.code(subject.sae, flat(subject.activations(batch)), subject.selection)
    values, indices = (np.asarray(jax.reshard(a, REPLICATED))[: kept.size] for a in (code.values, code.indices))
    token, slot = np.nonzero((values > 0) & kept.reshape(-1, 1))
    return token, indices[token, slot].astype(np.int64), values[token, slot].astype(float)


def token_strings(tokenizer: Tokenizer, size: int) -> list[str]:
    """What each id stands for; ids that are no text by themselves are called what the tokenizer calls them."""
    texts = tokenizer.backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False)
    return [
        text if text and "\ufffd" not in text else tokenizer.backend.id_to_token(i) or f"<{i}>"
        for i, text in enumerate(texts)
    ]


def _pad(tokenizer: Tokenizer) -> tuple[int, str]:
    """The token that others are replaced by: " _", as in the paper's code, or its end if that is several tokens."""
    pad = tokenizer.encode([" _"])[0][-1]
    return pad, tokenizer.decode([pad])


def _asking(subject: Subject, numbers: np.ndarray, bos: int | None, longest: int, asked: Callable) -> Callable:
    """`ask` of `explain_all`, of at most `longest` tokens. Texts begin with `bos` as contexts do; a token that training
    left out has the value 0. What several latents ask of one text is computed once.
    """
    rows_of = lambda width: max(1, TOKENS_AT_ONCE // width) * subject.mesh.size

    def ask(queries: list[tuple[int, list[int]]]) -> np.ndarray:
        texts: dict[tuple, list[int]] = {}
        for i, (_, ids) in enumerate(queries):
            texts.setdefault(tuple(ids) if bos is None or ids[0] == bos else (bos, *ids), []).append(i)
        # A program for each of few widths.
        by_width: dict[int, list[tuple]] = {}
        for text in texts:
            width = min(max(4, 1 << (len(text) - 1).bit_length()), longest)
            by_width.setdefault(width, []).append(text)
        latent, out = numbers[[number for number, _ in queries]], np.zeros(len(queries))
        for width, of_width in by_width.items():
            for start in range(0, len(of_width), rows_of(width)):
                part = of_width[start : start + rows_of(width)]
                values, indices = _ends(subject, part, rows_of(width), width)
                which = [texts[text] for text in part]
                row, query = np.repeat(np.arange(len(part)), [*map(len, which)]), np.concatenate(which)
                out[query] = np.where(indices[row] == latent[query, None], values[row], 0).sum(1)
                asked(len(query))
        return out

    return ask


def _ends(subject: Subject, texts: list[tuple], rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(values, latents) at the last token of each text, [len(texts), c] each, in a batch of shape [rows, width]."""
    # Rows without a text hold one token, so that no row is empty.
    tokens, last = np.full((rows, width), -1, np.int32), np.zeros(rows, np.int32)
    tokens[:, 0] = 0
    for row, text in enumerate(texts):
        tokens[row, : len(text)], last[row] = text, len(text) - 1
    put = lambda a: place(lambda start, stop: a[start:stop], a.shape, a.dtype, NamedSharding(subject.mesh, TOKENS))
    tokens, last = put(tokens), put(last)
    x = at_positions(subject.source.activations(tokens)[0], last)
    code = latents.code(subject.sae, x, subject.selection)
    arrays = code.values, code.indices, subject.source.kept(tokens), last
    values, indices, kept, last = (np.asarray(jax.reshard(a, REPLICATED))[: len(texts)] for a in arrays)
    return np.where(kept[np.arange(len(texts)), last][:, None], values, 0), indices


def check_text(subject: Subject, tokens: int):
    """Raises BadInput without a tokenizer, or without contexts for both halves."""
    if subject.tokenizer is None:
        raise BadInput("token patterns are made of text, and there is no tokenizer")
    subject.tokenizer()
    if halves(subject, tokens)[0].contexts < 2:
        raise BadInput(
            "token patterns are made from one context and tested on another, and there is one: give more text"
        )
