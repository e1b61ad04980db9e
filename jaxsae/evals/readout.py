"""Logits of the answers of agreement pairs after their prefixes, which are split over all devices of the mesh.

P prefixes, of which a device has p, T positions, R rows, V answers, d width. The number of a row is logit(right) -
logit(wrong); m is its mean over rows. Of a prefix's last token only the answers' logits are computed.
"""

import jax
import jax.numpy as jnp

from jaxsae.evals.pairs import Pairs, fill
from jaxsae.lm.model import affine_logits, cap, final, prefix
from jaxsae.lm.parallel import on_contexts
from jaxsae.precision import matmul
from jaxsae.sae.layout import REPLICATED


def split(pairs: Pairs) -> Pairs:
    """The rows with as many prefixes as divide over the mesh that is set."""
    return fill(pairs, jax.sharding.get_abstract_mesh().size)


def readout_of(lm, pairs, dtype):
    """Columns [d, V] and biases [V] of the unembedding, which is affine before any soft-cap, for the answers.

    Made outside of loops, because to get them all of its columns are read.
    """
    eye = jnp.eye(lm.config.d_model, dtype=dtype)
    bias = affine_logits(lm, jnp.zeros_like(eye[0]))[pairs.answers]
    return affine_logits(lm, eye)[:, pairs.answers] - bias, bias


def answers(lm, readout, stream, last, hook):
    """Logits [p, V] of the answers after position `last` [p], from the stream [p, T, d] at `hook`."""
    columns, bias = readout
    x = jnp.take_along_axis(final(lm, stream, hook), last[:, None, None], 1)[:, 0]
    return cap(lm, matmul(x, columns) + bias)


def everywhere(function, lm, *trees):
    """function(lm, *trees) of prefixes [P, ...], split over all devices; the results [P, ...] lie on every device."""
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), on_contexts(function, lm, *trees))


def numbers(logits, pairs):
    """The number of each row [R], from the logits [P, V] of the answers."""
    return logits[pairs.row, pairs.right] - logits[pairs.row, pairs.wrong]


def weights_of(pairs, dtype):
    """[P, V]: m is the sum of these times the logits of the answers."""
    zeros = jnp.zeros((len(pairs.tokens), len(pairs.answers)), dtype)
    return zeros.at[pairs.row, pairs.right].add(1 / len(pairs.row)).at[pairs.row, pairs.wrong].add(-1 / len(pairs.row))


def stream_at(lm, pairs, hook):
    """The activation [P, T, d] at `hook`."""
    return on_contexts(lambda lm, tokens: prefix(lm, tokens, hook), lm, pairs.tokens)


def mean_number(lm, readout, stream, pairs, hook):
    """m, from the stream [P, T, d] at `hook`."""
    logits = lambda model, stream, last: answers(*model, stream, last, hook)
    return (everywhere(logits, (lm, readout), stream, pairs.last) * weights_of(pairs, stream.dtype)).sum()
