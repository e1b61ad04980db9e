"""compute_equivalent: after how much of its training the language model was as good as it is with the autoencoder in it
(Gao et al. 2024, sec. 4.1). R rows of a table of compute and loss.

The table is one of the language model's own training. Its losses are on a text of its own, so that the loss that is
looked up is the table's last one plus the rise that the autoencoder causes.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals import downstream, standard
from jaxsae.evals.interface import Evaluation
from jaxsae.evals.subject import Subject

# Of a folder with a language model.
TABLE = "training_curve.csv"
COMPUTE, LOSS = ("flops", "tokens"), ("loss", "nats_per_token")
# Standard errors on each side of a mean, for 95 %.
Z = 1.96


@dataclass(frozen=True)
class Config:
    table: str | None = None
    """A .csv of the language model's own training: a column flops or tokens, and losses in nats per token in columns
    called loss or ...nats_per_token; default: the training_curve.csv beside its weights (the embedded model has
    one)."""


@dataclass(frozen=True)
class Table:
    """Losses [R] of a training run by column, and the compute [R] at which they were measured, in a unit."""

    unit: str
    compute: np.ndarray
    losses: dict[str, np.ndarray]


def run(subject: Subject, config: Config) -> dict:
    """What the autoencoder costs in nats per token, and {column: {metric: number}} for each column of losses."""
    table = read(_path(subject, config))
    measured = standard.measure(replace(subject, raw=None))["exported"]["all"]
    costs = {name: measured[name] for name in ("ce_original", "ce_substituted", "delta_ce", "delta_ce_se")}
    shares = (table.compute / table.compute.max()).tolist()
    curve = lambda losses: {"shares": shares, "losses": losses.tolist()}
    return costs | {
        "columns": {column: _of_column(table, losses, costs) | curve(losses) for column, losses in table.losses.items()}
    }


def check(subject: Subject, config: Config):
    """Raises BadInput without a table, or for one that is not understood."""
    read(_path(subject, config))


def read(path: Path) -> Table:
    """The table in a .csv file. Raises BadInput if it holds no compute, no losses, or fewer than two rows."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"--compute-equivalent.table {path} cannot be read: {error}") from error
    columns = [name for name in (rows[0] if rows else {}) if name]
    unit = next((name for name in COMPUTE if name in columns), None)
    names = [name for name in columns if name.endswith(LOSS)]
    if unit is None or not names or len(rows) < 2:
        raise BadInput(
            f"--compute-equivalent.table {path} has {len(rows)} rows and the columns {', '.join(columns) or 'none'}: "
            "give at least two rows with a column flops or tokens, and one called loss or ...nats_per_token"
        )
    try:
        numbers = {name: np.asarray([float(row[name]) for row in rows]) for name in (unit, *names)}
    except (TypeError, ValueError) as error:
        raise BadInput(f"--compute-equivalent.table {path} holds what is no number: {error}") from error
    for name, column in numbers.items():
        if not (np.isfinite(column) & (column > 0)).all():
            raise BadInput(f"--compute-equivalent.table {path} has numbers in {name} that are not above 0")
    return Table(unit, numbers[unit], {name: numbers[name] for name in names})


def _path(subject: Subject, config: Config) -> Path:
    if config.table is not None:
        return Path(config.table)
    beside = Path(subject.lm.folder or "") / TABLE
    if subject.lm.folder is None or not beside.is_file():
        raise BadInput(
            f"--metrics compute_equivalent needs a table of the language model's own training, and there is no {TABLE} "
            "beside its weights: give --compute-equivalent.table FILE"
        )
    return beside


def _of_column(table: Table, losses, costs: dict) -> dict[str, float | None]:
    """What one column of losses says; None for losses outside the table."""
    last = np.argmax(table.compute)
    final, whole = float(losses[last]), float(table.compute[last])
    compute_at = lambda loss: downstream.compute_equivalent(loss, table.compute, losses)
    share_at = lambda loss: None if (compute := compute_at(loss)) is None else compute / whole
    rise, error = costs["delta_ce"], costs["delta_ce_se"]
    shares = {"share": final + rise, "share_of_loss_as_measured": costs["ce_substituted"]}
    if error is not None:
        shares |= {"share_low": final + rise + Z * error, "share_high": final + rise - Z * error}
    found = {table.unit: int(whole), f"{table.unit}_equivalent": compute_at(final + rise)}
    return {"loss": final, **found, **{name: share_at(loss) for name, loss in shares.items()}}


def figure(result: dict, path: Path):
    """The losses of training against the share of its compute, with what the autoencoder costs marked on each."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(5.2, 3.6), layout="constrained")
    ax = picture.subplots()
    for number, (column, values) in enumerate(result["columns"].items()):
        color = f"C{number}"
        ax.plot(
            values["shares"],
            values["losses"],
            color=color,
            marker="o",
            markersize=3,
            label=_title(column, values["share"]),
        )
        if values["share"] is not None:
            loss = values["loss"] + result["delta_ce"]
            ax.plot(values["share"], loss, "D", color=color, markersize=8, markeredgecolor="white")
    ax.set(xscale="log", yscale="log", xlabel="share of the compute of training", ylabel="loss (nats per token)")
    ax.yaxis.set_major_formatter("{x:.2g}")
    ax.yaxis.set_minor_formatter("{x:.2g}")
    ax.grid(color="0.9")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, title="with the autoencoder: ◆", fontsize=9, title_fontsize=9)
    picture.savefig(path, dpi=110)


def _title(column: str, share: float | None) -> str:
    name = column.removesuffix("nats_per_token").strip("_").replace("_", " ") or column
    return f"{name}: outside the table" if share is None else f"{name}: {share:.1%}"


MEANINGS = {
    "share": """Share of the language model's own training compute that gives the loss it has with the autoencoder in
    it. Near 1 is good; published autoencoders of large models are at 0.1. Of a small model, trained for long beyond
    need, it is large: compare within one model only.""",
    "share_of_loss_as_measured": """The same of the loss on the text of this evaluation. Where that text is easier or
    harder than the table's, it misleads.""",
}

EVALUATION = Evaluation(
    run,
    f"""The compute after which the language model's own training first had the table's last loss plus delta_ce (the
    rise of the cross-entropy that `standard` measures, in nats per token), interpolated on logarithms of compute and
    loss; share is that of all its compute. The table's losses are on a text of its own, which is why the rise is added;
    share_of_loss_as_measured looks up ce_substituted itself. share_low and share_high: at delta_ce plus and minus {Z}
    standard errors. None outside the table.""",
    Config,
    needs_lm=True,
    check=check,
    coders=("autoencoder", "transcoder", "crosscoder"),
    figure=figure,
    meanings=MEANINGS,
)
