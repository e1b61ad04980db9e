"""The picture of the standard metrics: by position, and how tokens use latents."""

from pathlib import Path

import numpy as np

# What is shown by position.
BY_POSITION = {"nmse": "NMSE", "l0": "L0", "kl": "KL (nats)", "delta_ce": "rise of the CE (nats)"}
# Which histograms are shown, of what.
HISTOGRAMS = {
    "l0": ("L0", "tokens"),
    "density": ("log10 of the density", "latents"),
    "importance": ("log10 of the importance", "latents"),
}


def figure(result: dict, path: Path):
    """Histograms of L0, density and importance, and NMSE, L0, KL and the rise of the CE at each position, if rows have
    positions.

    A line marks the length of the contexts that the autoencoder was trained on, if these are longer.
    """
    from matplotlib.figure import Figure

    has_positions = result["kl_by_position"] is not None
    picture = Figure(figsize=(9, 7.5 if has_positions else 2.6), layout="constrained")
    grid = picture.add_gridspec(3 if has_positions else 1, 6)
    if has_positions:
        panels = [picture.add_subplot(grid[row, at]) for row in (0, 1) for at in (slice(0, 3), slice(3, 6))]
        for ax, (name, label) in zip(panels, BY_POSITION.items(), strict=True):
            _by_position(ax, result[f"{name}_by_position"], result.get("trained_context"))
            ax.set(ylabel=label, xlabel="position in the context")
    for number, (name, (label, what)) in enumerate(HISTOGRAMS.items()):
        ax = picture.add_subplot(grid[-1, 2 * number : 2 * number + 2])
        edges = np.asarray(result[f"{name}_histogram_edges"])
        # A bin of whole numbers lies around them.
        _histogram(ax, result[f"{name}_histogram"], edges - 0.5 if name == "l0" else edges)
        ax.set(xlabel=label, ylabel=what)
    for ax in picture.axes:
        ax.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)


def _by_position(ax, values, trained: int | None):
    values = [np.nan if value is None else value for value in values]
    ax.plot(values, color="0.15", linewidth=1.2, marker="." if len(values) < 3 else None)
    if trained and trained < len(values):
        ax.axvline(trained - 0.5, color="0.6", linewidth=1, linestyle="--")
        note = {"xy": (trained, 0.97), "xycoords": ax.get_xaxis_transform(), "va": "top", "fontsize": 8}
        ax.annotate(f" beyond the {trained} of training", color="0.4", **note)
    ax.grid(color="0.9")


def _histogram(ax, counts, edges):
    """Bars, without the empty bins at both ends."""
    filled = np.flatnonzero(counts)
    if len(filled):
        some = slice(filled[0], filled[-1] + 1)
        ax.stairs(counts[some], edges[some.start : some.stop + 1], fill=True, color="C0")
        if len(filled) == 1:
            ax.set_xlim(edges[some.start] - 1.5, edges[some.stop] + 1.5)
