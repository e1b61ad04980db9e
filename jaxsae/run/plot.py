"""training.png: how a run went."""

from pathlib import Path

from jaxsae.training.logs import read_metrics

PANELS = {"loss": "loss", "nmse": "NMSE (batch)", "l0": "L0", "dead_fraction": "dead fraction"}


def plot(metrics: Path, out: Path, title: str):
    """Loss, NMSE, L0 and dead fraction of a metrics.jsonl against tokens, as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    tokens = [row["tokens"] / 1e6 for row in rows]
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS.items()):
        values = [row[name] for row in rows]
        axes.plot(tokens, values, color="0.15", linewidth=1.2)
        axes.set_ylabel(label)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        if name in ("loss", "nmse"):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:.2g}")
            axes.yaxis.set_minor_formatter("{x:.2g}")
            axes.tick_params(axis="y", which="minor", labelsize=7)
        else:
            axes.set_ylim(0, 1.05 * max([*values, 0.01]))
    for axes in figure.axes[2:]:
        axes.set_xlabel("million tokens")
    figure.suptitle(title)
    figure.savefig(out, dpi=110)
