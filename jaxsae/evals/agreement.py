"""Subject-verb agreement through an autoencoder (Braun et al. 2024, app. I), on pairs like

    The athlete that the managers -> like, not likes

P distinct prefixes, T positions, R rows (a prefix with a right and a wrong answer), d width, A active latents, S slots.
The number of a row is logit(right) - logit(wrong), of the answers' first tokens behind the prefix's last one; m is its
mean over rows. End of text stands before every prefix, and reconstructions are at every position, there too.

A prefix is run once however many rows share it, and of its last token only the answers' logits are computed. Prefixes
are in order of length, so that what stands behind their ends need not be run.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsae.errors import BadInput
from jaxsae.evals import latents
from jaxsae.lm.model import LM, final, prefix, unembed
from jaxsae.lm.tokenizer import Tokenizer
from jaxsae.precision import matmul
from jaxsae.sae.forward import with_unit_decoder
from jaxsae.sae.struct import SAE

FIELDS = ("clean_prefix", "clean_answer", "patch_answer")
# How many latents the paper's curve keeps.
KS = (*range(100), *range(100, 500, 5))
# Tokens that are run at once where latents are ablated one by one (a latent at least; CPUs are slower at more).
TOKENS_AT_ONCE = 4096


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "slots", "row", "right", "wrong", "answers"],
    meta_fields=["groups"],
)
@dataclass(frozen=True)
class Pairs:
    """Rows as token ids; int32 arrays."""

    tokens: Any  # [P, T] end of text, the prefix, and end of text behind it; the shortest prefixes first
    slots: Any  # [P, T] which word of the prefix a token belongs to, -1 for end of text
    row: Any  # [R] the prefix of each row
    right: Any  # [R] first token of its right answer, as an index into `answers`
    wrong: Any  # [R] and of its wrong one
    answers: Any  # the distinct first tokens of all answers
    groups: tuple  # (start, stop, length): these prefixes have as many tokens, end of text in front included


@dataclass(frozen=True)
class Curve:
    """m with all but the `ks` most important latents ablated."""

    m_model: float
    m_sae: float  # nothing ablated
    latents: np.ndarray  # [A] those active in any slot, the most important first
    effects: np.ndarray  # [A] |m_sae - m without this latent|
    ks: np.ndarray  # [K]
    m: np.ndarray  # [K]

    @property
    def faithfulness(self) -> np.ndarray:
        """[K]: m / m_model."""
        return self.m / self.m_model


def read(path: str | Path, limit: int | None = None) -> list[dict]:
    """The first `limit` rows of a file of JSON lines, each with at least FIELDS. Raises BadInput for other files."""
    rows = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(itertools.islice(lines, limit), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in FIELDS):
                raise BadInput(f"{path}, line {number}, is not a pair: it needs texts called {', '.join(FIELDS)}")
            rows.append(row)
    return rows


def tokenise(rows: list[dict], tokenizer: Tokenizer) -> tuple[Pairs, dict[str, int]]:
    """Rows as token ids, and how many were dropped for which reason.

    Dropped are rows whose answers begin with the same token (their number would always be 0) and rows whose text the
    vocabulary cannot say. A template's slots are the words of its prefixes; a word of several tokens has all of them
    in its slot, as in the paper's code.
    """
    kept, dropped = [], Counter()
    for row in rows:
        text, *answers = (row[name] for name in FIELDS)
        first = [ids[:1] for ids in tokenizer.encode(answers)]
        words = _words(tokenizer, text)
        if words is None or not all(_comes_back(tokenizer, answer) for answer in answers):
            dropped["not in the vocabulary"] += 1
        elif first[0] == first[1]:
            dropped["answers begin alike"] += 1
        else:
            kept.append((words, *first[0], *first[1]))
    if not kept:
        raise BadInput(f"none of {len(rows)} rows can be used: {dict(dropped) or 'there are none'}")
    words, right, wrong = zip(*kept)
    # Distinct prefixes, the shortest first; where length is the same, in the order of their tokens.
    prefixes = sorted(set(words), key=lambda words: (sum(map(len, words)), words))
    lengths = [1 + sum(map(len, words)) for words in prefixes]
    tokens = np.full((len(prefixes), lengths[-1]), tokenizer.end_of_text, np.int32)
    slots = np.full_like(tokens, -1)
    for i, (words_of_i, length) in enumerate(zip(prefixes, lengths)):
        tokens[i, 1:length] = [*itertools.chain(*words_of_i)]
        slots[i, 1:length] = np.repeat(np.arange(len(words_of_i)), [*map(len, words_of_i)])
    answers, at = np.unique([right, wrong], return_inverse=True)
    right, wrong = at.reshape(2, -1).astype(np.int32)
    number = {words: i for i, words in enumerate(prefixes)}
    row = np.array([number[w] for w in words], np.int32)
    groups = tuple((lengths.index(n), lengths.index(n) + lengths.count(n), n) for n in sorted(set(lengths)))
    return Pairs(tokens, slots, row, right, wrong, answers.astype(np.int32), groups), dict(dropped)


def differences(lm: LM, pairs: Pairs) -> np.ndarray:
    """logit(right) - logit(wrong) of each row, by the model itself: [R]."""
    return np.asarray(_differences_of_model(lm, pairs))


def accuracy(differences) -> float:
    """Share of rows on which the right answer has the larger logit."""
    return float((np.asarray(differences) > 0).mean())


def faithfulness(lm: LM, sae: SAE, hook: str, pairs: Pairs) -> dict[str, float]:
    """m of the model, with the autoencoder at residual `hook`, and with zeros there; and how much of it is kept.

    `faithfulness` is m_sae / m_model, as the paper's code has it and its table 7; `faithfulness_paper` is its formula,
    (m_sae - m_empty) / (m_model - m_empty).
    """
    model, inserted, empty = (np.asarray(a, np.float64) for a in _three(lm, sae, pairs, hook))
    m, m_sae, m_empty = model.mean(), inserted.mean(), empty.mean()
    return {
        "m_model": float(m),
        "m_sae": float(m_sae),
        "m_empty": float(m_empty),
        "faithfulness": float(m_sae / m),
        "faithfulness_paper": float((m_sae - m_empty) / (m - m_empty)),
        "accuracy_model": accuracy(model),
        "accuracy_sae": accuracy(inserted),
    }


def topk_curve(lm: LM, sae: SAE, hook: str, pairs: Pairs, ks: Sequence[int] = KS) -> Curve:
    """How few latents carry m, with the autoencoder at residual `hook` (app. I, fig. 24).

    A latent is ablated by giving it, on every token of a slot, its mean over the tokens of that slot in all rows; end
    of text is left as it is. Its effect is how far that moves m. Then all but the k latents of the largest effects are
    ablated together (with k = 0, what Marks et al. 2024 call the empty circuit). The rows are of one template. Latents
    that are active outside the slots alone have no effect, and are not counted.
    """
    if len({*np.max(pairs.slots, 1)}) > 1:
        raise BadInput("prefixes have different numbers of words: give the rows of one template")
    active = np.flatnonzero(np.asarray(_counts(lm, sae, pairs, hook)))
    n_slots = int(np.max(pairs.slots)) + 1
    xhat, deviations, m_sae = _deviations(lm, sae, pairs, active, hook, n_slots)
    at_once = max(1, TOKENS_AT_ONCE // np.size(pairs.tokens))
    W = with_unit_decoder(sae).W_dec[active]
    each = _ablated_one_by_one(lm, xhat, deviations, W, pairs, hook, at_once)
    effects = np.abs(np.asarray(each) - np.asarray(m_sae))
    order = np.argsort(-effects, stable=True)
    ks = np.asarray(ks, np.int32)
    m = _all_but(lm, xhat, deviations[order], W[order], ks, pairs, hook)
    m_model = float(differences(lm, pairs).mean())
    return Curve(m_model, float(m_sae), active[order], effects[order], ks, np.asarray(m))


def _words(tokenizer: Tokenizer, text: str) -> tuple[tuple[int, ...], ...] | None:
    """The tokens of each word; None where the tokenizer does not cut the text at words, or cannot say it."""
    first, *rest = text.split(" ")
    words = tokenizer.encode([first, *(f" {word}" for word in rest)])
    cut = [*itertools.chain(*words)] == tokenizer.encode([text])[0]
    return tuple(map(tuple, words)) if cut and _comes_back(tokenizer, text) else None


def _comes_back(tokenizer: Tokenizer, text: str) -> bool:
    return bool(text) and tokenizer.decode(tokenizer.encode([text])[0]) == text


def _readout(lm, pairs, dtype):
    """What the unembedding, which is affine, has for the answers: columns [d, answers] and biases [answers].

    Made outside of loops, because to get them all of its columns are read.
    """
    eye = jnp.eye(lm.config.n_embd, dtype=dtype)
    bias = unembed(lm, jnp.zeros_like(eye[0]))[pairs.answers]
    return unembed(lm, eye)[:, pairs.answers] - bias, bias


def _numbers(lm, readout, stream, pairs, hook):
    """The number of each row [R], from the stream [P, T, d] at `hook`."""
    columns, bias = readout
    x = jnp.concatenate([final(lm, stream[a:z, :length], hook)[:, -1] for a, z, length in pairs.groups])
    logits = matmul(x, columns) + bias
    return logits[pairs.row, pairs.right] - logits[pairs.row, pairs.wrong]


@jax.jit
def _differences_of_model(lm, pairs):
    end = f"blocks.{lm.config.n_layer - 1}.hook_resid_post"
    stream = prefix(lm, pairs.tokens, end)
    return _numbers(lm, _readout(lm, pairs, stream.dtype), stream, pairs, end)


@partial(jax.jit, static_argnames="hook")
def _three(lm, sae, pairs, hook):
    """The numbers of all rows with the activation, its reconstruction and zeros at the hook: [3, R]."""
    x = prefix(lm, pairs.tokens, hook)
    streams = jnp.stack([x, latents.reconstruct(sae, x), jnp.zeros_like(x)])
    readout = _readout(lm, pairs, x.dtype)
    return jax.vmap(lambda stream: _numbers(lm, readout, stream, pairs, hook))(streams)


@partial(jax.jit, static_argnames="hook")
def _counts(lm, sae, pairs, hook):
    """On how many tokens in slots each latent is active: [n]."""
    x = prefix(lm, pairs.tokens, hook)
    return latents.counts(sae, x.reshape(-1, x.shape[-1]), pairs.slots.reshape(-1) >= 0)


@partial(jax.jit, static_argnames=("hook", "n_slots"))
def _deviations(lm, sae, pairs, active, hook, n_slots):
    """Reconstruction [P, T, d]; what ablation adds to each latent at each token, in units of the stream, [A, P, T]; m.

    An ablated latent changes the reconstruction by this number times its row of the decoder.
    """
    x = prefix(lm, pairs.tokens, hook)
    xhat = latents.reconstruct(sae, x)
    values, scale = latents.columns(sae, x.reshape(-1, x.shape[-1]), active)
    inside = jax.nn.one_hot(pairs.slots.reshape(-1), n_slots, dtype=x.dtype)  # [P T, S], zeros outside of slots
    # A mean over rows: each prefix counts as often as it occurs.
    times = jnp.repeat(jnp.bincount(pairs.row, length=len(x)), x.shape[1])
    weighted = inside * times[:, None].astype(x.dtype)
    means = matmul(weighted.T, values) / weighted.sum(0)[:, None]
    added = (matmul(inside, means) - inside.sum(1, keepdims=True) * values) * scale[:, None]
    m = _numbers(lm, _readout(lm, pairs, x.dtype), xhat, pairs, hook).mean()
    return xhat, added.T.reshape(len(active), *x.shape[:2]), m


@partial(jax.jit, static_argnames=("hook", "at_once"))
def _ablated_one_by_one(lm, xhat, deviations, W, pairs, hook, at_once):
    """m without each latent: [A]. Only the layers behind the hook are run again."""
    readout = _readout(lm, pairs, xhat.dtype)
    m = lambda part: _numbers(lm, readout, xhat + part[0][..., None] * part[1], pairs, hook).mean()
    return lax.map(m, (deviations, W), batch_size=at_once)


@partial(jax.jit, static_argnames="hook")
def _all_but(lm, xhat, deviations, W, ks, pairs, hook):
    """m without all but the first k latents, for each of ks: [K]."""
    readout = _readout(lm, pairs, xhat.dtype)

    def m(k):
        ablated = jnp.where(jnp.arange(len(W)) >= k, 1, 0).astype(W.dtype)
        changed = matmul(deviations.reshape(len(W), xhat.shape[0] * xhat.shape[1]).T, ablated[:, None] * W)
        return _numbers(lm, readout, xhat + changed.reshape(xhat.shape), pairs, hook).mean()

    return lax.map(m, ks)
