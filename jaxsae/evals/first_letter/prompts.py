"""Prompts that ask for the first letters of words, and what a model makes of them. W words, T positions, d width.

storm has the first letter: S
garden has the first letter:
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from jaxsae.errors import BadInput
from jaxsae.evals.subject import Subject
from jaxsae.lm.model import LM, final, prefix, unembed
from jaxsae.lm.parallel import on_contexts
from jaxsae.lm.tokenizer import Tokenizer
from jaxsae.sae.layout import REPLICATED

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUESTION, SEPARATOR = " has the first letter:", "\n"
# Words that a prompt shows with their letters.
EXAMPLES = 10
# Tokens that each device reads at once.
TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length."""

    tokens: np.ndarray  # [W, T] int32
    letters: np.ndarray  # [W] which of LETTERS each word begins with
    answers: np.ndarray  # [26] the token of each letter
    asked: int  # position of the word


def words_of(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that are words of two or more letters from A to Z, a space before them or not: (ids [W], letters [W])."""
    size = max(tokenizer.backend.get_vocab().values()) + 1
    texts = tokenizer.backend.decode_batch([[i] for i in range(size)], skip_special_tokens=True)
    words = [text.removeprefix(" ") for text in texts]
    ids = [i for i, word in enumerate(words) if len(word) > 1 and word.isascii() and word.isalpha()]
    return np.array(ids, np.int32), np.array([LETTERS.index(words[i][0].upper()) for i in ids], int)


def make_prompts(tokenizer: Tokenizer, context: int, most: int, examples: int = EXAMPLES, seed: int = 0) -> Prompts:
    """Prompts that ask for at most `most` words, after as many of `examples` others as `context` tokens have room for.

    Raises BadInput if there are no words, if letters are no single tokens, or if there is no room for an example.
    """
    random = np.random.default_rng(seed)
    ids, letters = words_of(tokenizer)
    question, separator = tokenizer.encode([QUESTION, SEPARATOR])
    answers = _answers(tokenizer)
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    asked, shown = 1 + len(question), 2 + len(question) + len(separator)
    examples = min(examples, (context - len(start) - asked) // shown, len(ids) - 1)
    if examples < 1:
        raise BadInput(
            f"first_letter asks for words of the vocabulary after an example: here are {len(ids)}, and {context} "
            f"positions for {len(start) + asked + shown} tokens"
        )
    rows, order = [], random.permutation(len(ids))[:most]
    for i in order:
        others = random.choice(len(ids) - 1, examples, replace=False)
        others += others >= i
        row = list(start)
        for j in others:
            row += [ids[j], *question, answers[letters[j]], *separator]
        rows.append([*row, ids[i], *question])
    return Prompts(np.array(rows, np.int32), letters[order], answers, len(rows[0]) - asked)


def _answers(tokenizer: Tokenizer) -> np.ndarray:
    """The token of each letter, with a space before it if those are tokens: [26]."""
    for space in (" ", ""):
        tokens = tokenizer.encode([space + letter for letter in LETTERS])
        if all(len(ids) == 1 for ids in tokens):
            return np.array(tokens, np.int32)[:, 0]
    raise BadInput("first_letter needs the letters A to Z as tokens, and this tokenizer lacks some")


def ask(subject: Subject, prompts: Prompts, at: slice):
    """(activations [W, d] at the asked words, which of them training kept [W], where the model's letter is right [W])
    of some of the prompts.
    """
    tokens, size = prompts.tokens[at], prompts.tokens.shape[1]
    some = max(1, TOKENS_AT_ONCE // size) * subject.mesh.size
    last_hook = f"blocks.{subject.lm.config.n_layer - 1}.hook_resid_post"
    parts = []
    for start in tqdm(range(0, len(tokens), some), "first letter", unit="batch", disable=subject.quiet, leave=False):
        own = tokens[start : start + some]
        batch = np.concatenate([own, np.repeat(own[-1:], some - len(own), axis=0)])
        with jax.set_mesh(subject.mesh):
            x, logits = _ask(subject.lm, batch, prompts.answers, subject.hook, last_hook, prompts.asked)
            kept = np.asarray(subject.source.kept(batch))[:, prompts.asked]
        parts.append(tuple(np.asarray(a)[: len(own)] for a in (x, kept, logits)))
    x, kept, logits = (np.concatenate(part) for part in zip(*parts))
    return x, kept, logits.argmax(1) == prompts.letters[at]


@partial(jax.jit, static_argnames=("hook", "last_hook", "asked"))
def _ask(lm: LM, tokens, answers, hook: str, last_hook: str, asked: int):
    def local(model, tokens):
        lm, answers = model
        end = final(lm, prefix(lm, tokens, last_hook), last_hook)[:, -1]
        return prefix(lm, tokens, hook)[:, asked], unembed(lm, end)[:, answers]

    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), on_contexts(local, (lm, answers), tokens))
