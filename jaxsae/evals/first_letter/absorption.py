"""Which latents say with which letter a word begins, and which absorb that. W words, d width, n latents, C slots.

After Chanin et al. 2024 and SAEBench's version of their metric, which the constants are from.
"""

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxsae.evals.first_letter.prompts import LETTERS
from jaxsae.evals.probes import linear
from jaxsae.evals.probes.best import codes, top_latents, values_of
from jaxsae.evals.subject import Subject
from jaxsae.precision import matmul
from jaxsae.sae.layout import REPLICATED

# The share of words that probes are fitted to; the F1 of a linear probe that says that the model has a letter; latents
# that a letter may be split into, and what each must add to the F1.
FITTED, PRESENT, MOST, ADDS = 0.8, 0.6, 10, 0.03
# When others absorb a letter: see `absorption`.
PROPORTION, COSINE, COSINE_FULL, ABSORBERS = 0.4, 0.1, 0.025, 3
# Of the penalty of the probe whose direction is the letter's; its numbers are standardised.
STRENGTH = 1e-3


def measure(subject: Subject, x, letters) -> dict[str, dict]:
    """{letter: numbers} of the letters that a linear probe finds in activations x [W, d] of words that begin with
    `letters` [W].
    """
    fitted = np.arange(len(x)) < FITTED * len(x)
    mean, std = x[fitted].mean(0, dtype=np.float64), x[fitted].std(0, dtype=np.float64)
    std = np.where(std > 1e-7 * np.abs(mean), std, np.inf)
    standard, out = (x - mean) / std, {}
    for number, letter in enumerate(tqdm(LETTERS, "letters", disable=subject.quiet, leave=False)):
        y = letters == number
        if min(y[fitted].sum(), y[~fitted].sum()) < 2:
            continue
        theta = linear.fit(standard[fitted], y[fitted], STRENGTH)
        scores = linear.logits(theta, standard)
        if (f1 := linear.f1(scores[~fitted] > 0, y[~fitted])) < PRESENT:
            continue
        main, f1s = _main_latents(subject, x, y, fitted)
        own = ~fitted & y & (scores > 0)
        fraction, full = _absorbed(subject, x[own], theta[:-1] / std, main)
        out[letter] = {
            "absorption_fraction": float(fraction.mean()),
            "full_absorption": float(full.mean()),
            "split_latents": len(main),
            "latents": main.tolist(),
            "probe_f1": f1,
            "latent_f1": f1s[0],
            "words": int(own.sum()),
        }
    return out


def _main_latents(subject: Subject, x, y, fitted) -> tuple[np.ndarray, list[float]]:
    """The latents that together say the letter, and the F1 on the test words of the first 1, 2, ... of them."""
    with jax.set_mesh(subject.mesh):
        best = top_latents(subject.sae, x[fitted], y[fitted], MOST, subject.selection, signed=True)
        values = values_of(subject.sae, x, best, subject.selection)
    f1s = []
    for k in range(1, len(best) + 1):
        theta = linear.fit(values[fitted][:, :k], y[fitted], 1 / fitted.sum(), balanced=True)
        f1s.append(linear.f1(linear.logits(theta, values[~fitted][:, :k]) > 0, y[~fitted]))
    return best[: split(f1s)], f1s


def split(f1s: list[float], adds: float = ADDS) -> int:
    """Into how many latents a feature is split: as long as one more adds more than `adds` to the F1 of all before."""
    k = 1
    while k < len(f1s) and f1s[k] > f1s[k - 1] + adds:
        k += 1
    return k


def _absorbed(subject: Subject, x, direction, main):
    """`absorption` of words with activations x [W, d], for a letter's direction [d] and latents."""
    direction, sae, parts = np.asarray(direction / np.linalg.norm(direction), x.dtype), subject.sae, []
    with jax.set_mesh(subject.mesh):
        along, lengths = jax.device_get(_along(sae, direction))
        for values, numbers, scale in codes(sae, x, subject.selection):
            cosines = along[numbers] / np.maximum(lengths[numbers], 1e-12)
            shares = values * scale[:, None] * along[numbers]
            done = sum(len(fraction) for fraction, _ in parts)
            projection = x[done : done + len(values)] @ direction
            parts.append(absorption(projection, values, shares, cosines, np.isin(numbers, main)))
    return (np.concatenate(part) for part in zip(*parts))


def absorption(projection, values, shares, cosines, main):
    """How much of a letter other latents than its own say, of each word: (fraction [W], whether all by one [W]).

    projection [W] is that of the activation on the letter's direction; values [W, C] the word's latents, shares [W, C]
    what each adds to the projection, cosines [W, C] those of its decoder row and the direction, main [W, C] whether it
    is one of the letter's own. Absorbers are others with a cosine of at least COSINE and a share above 0; the ABSORBERS
    largest shares count. The fraction is 0 if they are less than PROPORTION of the projection or the letter's own
    latents say all of it, 1 if these say none, else the absorbers' part of what both say (at most what the letter's own
    leave). It is all by one if none of the letter's own is active, and the latent with the largest share has a cosine
    of at least COSINE_FULL and PROPORTION of the projection, which is above 0.
    """
    own = np.where(main, shares, 0).sum(1)
    others = np.sort(np.where(~main & (cosines >= COSINE) & (shares > 0), shares, 0), 1)[:, -ABSORBERS:].sum(1)
    absorbed = np.minimum(others, projection - own)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip(absorbed / (absorbed + own), 0, 1)
    none = (own >= projection) | (others < PROPORTION * projection) | (projection <= 0)
    fraction = np.where(none, 0.0, np.where(own <= 0, 1.0, part))
    top = shares.argmax(1)[:, None]
    largest, cosine = (np.take_along_axis(a, top, 1)[:, 0] for a in (shares, cosines))
    silent = ~(main & (np.abs(values) > 1e-8)).any(1)
    full = silent & (cosine >= COSINE_FULL) & (projection > 0) & (largest >= PROPORTION * projection)
    return fraction, full


@jax.jit
def _along(sae, direction):
    """Of each decoder row: its projection on a direction [d] and its length, [n] each."""
    W = sae.as_used().W_dec
    both = matmul(W, direction[:, None])[:, 0], jnp.sqrt((W * W).sum(1))
    return jax.tree.map(lambda a: jax.reshard(a, REPLICATED), both)
