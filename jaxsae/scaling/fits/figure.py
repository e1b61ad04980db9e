"""A picture of a fit: the points with the law, and what is left of them."""

from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.io import atomic
from jaxsae.scaling.fits import Fit
from jaxsae.scaling.fits.frontier import Frontier

ENDINGS = ("png", "pdf", "svg")


def check(path: Path):
    """Raises BadInput for a picture that cannot be written."""
    if path.suffix.removeprefix(".") not in ENDINGS:
        raise BadInput(f"--plot {path} is no picture: give a name that ends in .{', .'.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise BadInput(f"--plot {path} is in a folder that is not there: make {path.parent}, or give another one")


def draw(result: Fit, path: Path, y: str = "nmse", frontier: Frontier | None = None):
    """Write the picture of a fit, in the format that its ending says."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9.5, 4), layout="constrained")
    FigureCanvasAgg(picture)
    left, right = picture.subplots(1, 2)
    draw_law(left, result, y, frontier)
    draw_residuals(right, result)
    atomic.write(path, lambda scratch: picture.savefig(scratch, dpi=110, format=path.suffix.removeprefix(".")))


def draw_law(ax, result: Fit, y: str = "nmse", frontier: Frontier | None = None):
    """Points and the law, one line for each k of a joint law, on logarithmic axes."""
    name, *others = result.x
    x = result.x[name]
    if frontier is not None:
        known = np.isfinite(frontier.envelope)
        ax.plot(
            frontier.grid[known], frontier.envelope[known], color="0.75", linewidth=1, label="least loss of all runs"
        )
    groups = np.unique(result.x[others[0]]) if others else [None]
    for number, group in enumerate(groups):
        part = slice(None) if group is None else result.x[others[0]] == group
        grid = np.geomspace(x[part].min() / 1.3, x[part].max() * 1.3, 200)
        columns = {name: grid} | ({} if group is None else {others[0]: np.full(200, group)})
        color = "0.15" if group is None else f"C{number % 10}"
        label = _label(result) if group is None else f"{others[0]} {group:g}"
        ax.plot(grid, result.predict(columns), color=color, linewidth=1.2, label=label)
        ax.plot(x[part], result.y[part], "o", color=color, markersize=4)
    scale(ax, name)
    ax.set(yscale="log", ylabel=y)
    ax.yaxis.set_major_formatter("{x:.2g}")
    ax.yaxis.set_minor_formatter("{x:.2g}")
    ax.tick_params(axis="y", which="minor", labelsize=7)
    ax.legend(frameon=False, fontsize=8)


def draw_residuals(ax, result: Fit):
    """What a law leaves of each point, in percent, against the first column; a hollow point is the prediction from the
    other sizes."""
    name, *others = result.x
    x, groups = result.x[name], np.unique(result.x[others[0]]) if others else [None]
    held_out = result.held_out
    for number, group in enumerate(groups):
        part = np.full(len(x), True) if group is None else result.x[others[0]] == group
        color = "0.15" if group is None else f"C{number % 10}"
        ax.plot(x[part], 100 * result.residuals[part], "o", color=color, markersize=4)
        if held_out is not None:
            left = np.log(held_out.measured / held_out.predicted)[part]
            ax.plot(x[part], 100 * left, "o", color=color, fillstyle="none", markersize=6)
    # In no group's color.
    ax.plot([], [], "o", color="0.4", markersize=4, label="fitted")
    if held_out is not None:
        ax.plot([], [], "o", color="0.4", fillstyle="none", markersize=6, label="predicted from other sizes")
    ax.axhline(0, color="0.7", linewidth=0.8)
    scale(ax, name)
    ax.set_ylabel("measured above the law (%)")
    ax.legend(frameon=False, fontsize=8)


def _label(result: Fit) -> str:
    b, (low, high) = result.params["b"], result.intervals["b"]
    return f"exponent {b:.3g} ({low:.3g} to {high:.3g})"


def scale(ax, name: str):
    """The logarithmic axis of a column, and no more ink than it takes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set(xscale="log", xlabel=name)
    low, high = ax.get_xlim()
    if high < min(1e3 * low, 1e6):
        # One power of ten more or less: its multiples have to be named too.
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:.3g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
