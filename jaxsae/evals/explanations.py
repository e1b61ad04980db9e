"""explanations: the language model's loss with latents that their explanations simulate (Gao et al. 2024, sec. 4.4).

The value s that a latent's token patterns predict is scaled by E[s a] / E[s^2], a the true value, decoded, and put in.
If explanations say no more than which tokens stand there, the loss is that of a language model of counts.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxsae.distributed.mesh import place
from jaxsae.errors import BadInput
from jaxsae.evals import latents, reconstruction, substitution
from jaxsae.evals.explaining import Explanations, activations, check_text, explain_latents, halves, on_host
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.ngrams import Bigrams, pairs
from jaxsae.evals.subject import Batch, Subject, flat, put_in
from jaxsae.sae.layout import REPLICATED, TOKENS
from jaxsae.sae.normalise import denormalise, normalise

SUBSTITUTES = ("autoencoder", "simulated", "empty")
LABELS = {
    "autoencoder": "the autoencoder",
    "simulated": "latents from explanations",
    "bigram": "bigram counts",
    "unigram": "unigram counts",
    "empty": "no latents",
}


@dataclass(frozen=True)
class Config:
    latents: int = 16_384
    """Latents to explain, those with the largest sums of squared values; the others are 0."""
    documents: int = 16
    """Random activations that a latent's explanation is made from, if there are so many."""
    length: int = 3
    """Tokens of a pattern at most."""
    tokens: int = 65_536
    """Tokens to read; explanations and scales come from the first half of the contexts, losses from the second."""
    count_tokens: int = 1_048_576
    """Tokens of the text, those of the second half left out, that bigrams and unigrams are counted on."""
    seed: int = 0
    """Of the latents and activations."""

    def __post_init__(self):
        for name in ("latents", "documents", "length", "tokens", "count_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"--explanations.{name.replace('_', '-')} is {getattr(self, name)}: give at least 1")


def scales(s, a):
    """E[s a] / E[s^2] over tokens, the scale by which simulated values s [N, ...] are nearest to the true ones a
    [N, ...]: [...]; 0 where s never fires.
    """
    s, a = jnp.asarray(s), jnp.asarray(a)
    return _quotient((s * a).mean(0), (s * s).mean(0))


def _quotient(product, square):
    return jnp.where(square > 0, product / jnp.where(square > 0, square, 1), 0)


def run(subject: Subject, config: Config) -> dict:
    """Rises of the cross-entropy above the language model's, with simulated latents and with everything that they are
    compared with.
    """
    subject, train, test = halves(subject, config.tokens)
    how = config.documents, config.length, config.seed, config.latents
    explanations = explain_latents(subject, train, *how, largest=True)
    factors = _factors(subject, train, explanations)
    bigrams = Bigrams(_texts(subject, train, config.count_tokens), subject.lm.config.vocab_size)
    total, center = {}, None
    for batch in subject.batches(title="explanations: losses", among=test):
        x = subject.activations(batch)
        center = _center(x, batch.kept, subject.sae.spec.normalise) if center is None else center
        ids, kept = on_host(subject, batch)
        token, number, value = explanations.simulate(ids, kept)
        slots = _slots(token, explanations.latents[number], value * factors[number], len(batch.mask) * x.shape[1])
        put = lambda a: place(lambda start, stop: a[start:stop], a.shape, a.dtype, NamedSharding(subject.mesh, TOKENS))
        code = latents.code(subject.sae, flat(x), subject.selection)
        pairs_of = {"autoencoder": (code.values, code.indices), "simulated": (put(slots[0]), put(slots[1]))}
        sums, streams = _batch(subject.sae, x, batch.kept, pairs_of, center)
        sums = jax.device_get(sums) | {"simulated": len(token)}
        losses = substitution.summed(subject, batch, {"original": x, **streams})
        losses |= _of_counts(subject, batch, bigrams)
        sums["ce"] = {name: np.sum(values, dtype=np.float64) for name, values in losses.items()}
        sums = jax.tree.map(lambda a: np.asarray(a, np.float64), sums)
        total = jax.tree.map(np.add, total, sums) if total else sums
    return {"tokens": subject.rows, **_numbers(total, explanations, bigrams)}


def _numbers(total: dict, explanations: Explanations, bigrams: Bigrams) -> dict:
    kept = total["kept"]
    spread = reconstruction.spread_of(total["square"], total["deviation"], max(kept, 1))
    rises = substitution.rises(total["ce"])
    return {
        "latents": len(explanations.latents),
        "share_of_squares": explanations.share,
        "activations": explanations.activations,
        "held_out_tokens": int(kept),
        "counted_tokens": bigrams.tokens,
        "l0": reconstruction.ratio(total["l0"], kept),
        "l0_simulated": reconstruction.ratio(total["simulated"], kept),
        "nmse": {name: reconstruction.ratio(total["error"][name], spread) for name in SUBSTITUTES},
        "delta_ce": {name: rises[name] for name in LABELS},
    }


def _factors(subject: Subject, contexts: range, explanations: Explanations) -> np.ndarray:
    """`scales` of every latent that is explained, [A], from sums over the tokens of `contexts`."""
    A = len(explanations.latents)
    number_of = np.full(subject.sae.n, -1)
    number_of[explanations.latents] = np.arange(A)
    product, square = np.zeros(A), np.zeros(A)
    for batch in subject.batches(title="explanations: scales", among=contexts):
        ids, kept = on_host(subject, batch)
        token, number, s = explanations.simulate(ids, kept)
        at, latent, a = activations(subject, batch, kept)
        explained = number_of[latent] >= 0
        key = at[explained] * A + number_of[latent[explained]]
        _, of_s, of_a = np.intersect1d(token * A + number, key, assume_unique=True, return_indices=True)
        product += np.bincount(number[of_s], s[of_s] * a[explained][of_a], A)
        square += np.bincount(number, s * s, A)
    return np.asarray(_quotient(product, square), np.float64)


def _slots(token: np.ndarray, latent: np.ndarray, value: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of latents as (values, indices) [tokens, c], with c a power of two: one program for many batches."""
    order = np.argsort(token, kind="stable")
    token, latent, value = token[order], latent[order], value[order]
    rank = np.arange(len(token)) - np.searchsorted(token, token)
    slots = 1 << int(max(rank, default=0)).bit_length()
    values, indices = np.zeros((tokens, slots)), np.zeros((tokens, slots), np.int32)
    values[token, rank], indices[token, rank] = value, latent
    return values.astype(jax.dtypes.canonicalize_dtype(np.float64)), indices


@partial(jax.jit, static_argnames="kind")
def _center(x, kept, kind: str):
    return jax.reshard(reconstruction.centers(normalise(x, kind)[0], kept)["all"], REPLICATED)


@jax.jit
def _batch(sae, x, kept, codes: dict, center):
    """Sums over the tokens that are kept, and the streams [b, T, d] with each code (values, indices), and with none."""
    normal, mean, scale = normalise(x, sae.spec.normalise)
    contexts = lambda a: jax.lax.reshape(a, x.shape, out_sharding=TOKENS)
    xhat = {name: contexts(latents.decode(sae, values.astype(x.dtype), i)) for name, (values, i) in codes.items()}
    xhat["empty"] = jnp.broadcast_to(sae.b_dec, x.shape)
    square, deviation = reconstruction.squares(normal, kept, {"all": center})
    sums = {
        "kept": kept.sum(),
        "l0": ((codes["autoencoder"][0] > 0) & flat(kept)[:, None]).sum(),
        "error": {name: jnp.where(kept, ((normal - a) ** 2).sum(-1), 0).sum() for name, a in xhat.items()},
        "square": square["all"].sum(),
        "deviation": deviation.sum(0),
    }
    streams = {name: put_in(denormalise(a, mean, scale), x, kept) for name, a in xhat.items()}
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), sums), streams


def _texts(subject: Subject, train: range, most: int, at_once: int = 1024):
    """Token ids [c, T] of the first half, and of what is not read at all: together at most `most` tokens."""
    contexts = [*train, *range(subject.contexts, len(subject.source))][: max(1, most // subject.source.rows)]
    for part in (train, range(subject.contexts, subject.contexts + len(contexts) - len(train))):
        part = part[: len(contexts)]
        for start in range(part.start, part.stop, at_once):
            yield subject.source.host(start, min(start + at_once, part.stop))


def _of_counts(subject: Subject, batch: Batch, bigrams: Bigrams) -> dict[str, float]:
    """Summed cross-entropies of bigrams and unigrams on a batch."""
    before, after = pairs(np.asarray(jax.reshard(batch.host, REPLICATED))[: batch.size])
    return {
        "bigram": -np.log(bigrams.bigram(before, after)).sum(),
        "unigram": -np.log(bigrams.unigram(after)).sum(),
    }


def check(subject: Subject, config: Config):
    """Raises BadInput without a tokenizer, or without contexts for both halves."""
    check_text(subject, config.tokens)


def figure(result: dict, path: Path):
    """The rise of the cross-entropy with each substitute."""
    from matplotlib.figure import Figure

    rises = {LABELS[name]: value for name, value in result["delta_ce"].items() if value is not None}
    if not rises:
        return
    picture = Figure(figsize=(6.5, 2.8), layout="constrained")
    ax = picture.subplots()
    ax.barh([*rises], [*rises.values()], height=0.6, color=["0.7", "0.25", "0.7", "0.7", "0.7"][: len(rises)])
    for y, value in enumerate(rises.values()):
        ax.annotate(f"{value:.3f}", (max(value, 0), y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="rise of the cross-entropy (nats per token)", xlim=(0, 1.12 * max(*rises.values(), 0)))
    ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)


MEANINGS = {
    "simulated": """The rise of the cross-entropy if latents are replaced by what their explanations predict. Near the
    autoencoder's own is good; above the bigram's, the explanations say less than the word before.""",
    "bigram": "What the word before alone predicts: the mark to beat.",
}

EVALUATION = Evaluation(
    run,
    """The latents that are active in the first half of the contexts, --explanations.latents of them (those with the
    largest sums of squared values, of which they have share_of_squares), are explained by patterns of at most
    --explanations.length tokens from --explanations.documents random activations (see n2g). The value s that an
    explanation predicts is multiplied by E[s a] / E[s^2] over the first half, a the latent's value (0 if s never
    fires); latents without explanation are 0. On the second half, simulated latents are decoded, brought into the units
    of the stream with the mean and norm of the true token, and put in where training read. delta_ce: rise of the
    cross-entropy above the language model's in nats per predicted token, with the autoencoder itself, with simulated
    latents and with no latents (empty); beside it bigrams with Witten-Bell smoothing and unigrams, counted on
    counted_tokens of the same text without the second half.""",
    Config,
    needs_lm=True,
    check=check,
    figure=figure,
    meanings=MEANINGS,
)
