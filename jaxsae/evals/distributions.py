"""How tokens use latents: the distribution of L0 over tokens, and of densities and importances over latents. n latents.

The density of a latent is the share of tokens on which its value is above 0, its importance the mean over tokens of the
squared norm of what it writes (Gao et al. 2024, app. E.5). Both are roughly log-normal, so histograms are of log10.
"""

import numpy as np

QUANTILES = (5, 25, 50, 75, 95)
# Bins of a histogram of L0, at most; edges of those of log10 of densities, and how many others have.
L0_BINS, BINS = 64, 32
DENSITY_EDGES = np.linspace(-8, 0, BINS + 1)


def count_l0(l0, kept):
    """How many tokens of those in `kept` have each L0: [largest L0 + 1]."""
    return np.bincount(np.asarray(l0)[np.asarray(kept) > 0].astype(np.int64), minlength=1)


def add_counts(a, b):
    """The sum of two counts [...] of different lengths."""
    length = max(len(a), len(b))
    return np.pad(a, (0, length - len(a))) + np.pad(b, (0, length - len(b)))


def of_l0(counts) -> dict:
    """Quantiles and the histogram of L0, from how many tokens have each: the smallest L0 that so many percent of the
    tokens do not exceed; None without tokens.
    """
    total = counts.sum()
    below = np.cumsum(counts)
    at = lambda q: int(np.searchsorted(below, q / 100 * total)) if total else None
    width = -(-len(counts) // L0_BINS)
    starts = np.arange(0, len(counts), width)
    return {f"l0_q{q:02}": at(q) for q in QUANTILES} | {
        "l0_histogram": np.add.reduceat(counts, starts).tolist(),
        "l0_histogram_edges": [*starts.tolist(), int(starts[-1] + width)],
    }


def of_latents(fired, written, tokens: int, d: int) -> dict:
    """Of each latent [n] on how many of the `tokens` it fired, and the squared norm of what it wrote, summed.

    `eval_dead_fraction`: the share that fired on none; `densest_d`: the mean density of the d densest;
    `freq_over_1_percent`: the share of latents that fire on more than 1 % of the tokens, and `normalized_` their share
    of the summed density of all. Histograms are of the latents that fired.
    """
    density, importance = fired / max(tokens, 1), written / max(tokens, 1)
    alive = fired > 0
    histogram = lambda values, edges: np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist()
    logs = {"density": np.log10(density[alive]), "importance": np.log10(np.maximum(importance[alive], 1e-300))}
    low, high = (logs["importance"].min(), logs["importance"].max()) if alive.any() else (0, 0)
    edges = {"density": DENSITY_EDGES, "importance": np.linspace(low, max(high, low + 1e-6), BINS + 1)}
    out = {"eval_dead_fraction": float(1 - alive.mean()), "densest_d": float(np.sort(density)[-d:].mean())}
    for percent in (1, 10):
        over = density > percent / 100
        out[f"freq_over_{percent}_percent"] = float(over.mean())
        out[f"normalized_freq_over_{percent}_percent"] = float(density[over].sum() / max(density.sum(), 1e-300))
    for name, values in logs.items():
        out |= {f"{name}_histogram": histogram(values, edges[name])}
        out |= {f"{name}_histogram_edges": edges[name].tolist()}
    return out
