"""Activations at the last token of texts. N texts, T positions, d width."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxsae.evals.subject import Subject
from jaxsae.lm.model import LM, prefix
from jaxsae.lm.parallel import on_contexts
from jaxsae.lm.tokenizer import Tokenizer
from jaxsae.sae.layout import REPLICATED

# Tokens that each device reads at once, and the multiple that the positions of a batch are filled up to.
TOKENS_AT_ONCE, MULTIPLE = 4096, 8


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> list[list[int]]:
    """The last tokens of each text, at most `context`, after the token that begins every context, if there is one."""
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    return [start + ids[max(0, len(start) + len(ids) - context) :] for ids in tokenizer.encode(list(texts))]


def last_activations(subject: Subject, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(activations [N, d] at the last token of each list of ids, which of them count [N]).

    Those that training left out there, and texts without tokens, do not count, and have zeros.
    """
    devices = subject.mesh.size
    lengths = np.array([len(row) for row in ids], int)
    x = np.zeros((len(ids), subject.sae.d), subject.sae.b_dec.dtype)
    kept = np.zeros(len(ids), bool)
    # Texts of about the same length together, so that little is filled up.
    order = [i for i in np.argsort(lengths, kind="stable") if lengths[i]]
    start, bar = 0, tqdm(total=len(order), desc="texts", unit="text", disable=subject.quiet, leave=False)
    while start < len(order):
        width = -(-lengths[order[start]] // MULTIPLE) * MULTIPLE
        size = max(1, TOKENS_AT_ONCE // width) * devices
        at = [i for i in order[start : start + size] if lengths[i] <= width]
        start += len(at)
        bar.update(len(at))
        tokens, last = np.full((size, width), -1, np.int32), np.zeros(size, np.int32)
        for row, i in enumerate(at):
            tokens[row, : lengths[i]], last[row] = ids[i], lengths[i] - 1
        with jax.set_mesh(subject.mesh):
            values, counts = _last(subject.lm, tokens, last, np.asarray(subject.source.kept(tokens)), subject.hook)
        x[at], kept[at] = np.asarray(values)[: len(at)], np.asarray(counts)[: len(at)]
    bar.close()
    return x, kept


@partial(jax.jit, static_argnames="hook")
def _last(lm: LM, tokens, last, kept, hook: str):
    def local(lm, tokens, last, kept):
        pick = lambda a: a[jnp.arange(len(last)), last]
        return pick(prefix(lm, jnp.maximum(tokens, 0), hook)), pick(kept)

    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), on_contexts(local, lm, tokens, last, kept))
