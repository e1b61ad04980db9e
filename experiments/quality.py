"""What the experiments of evaluation quality share: which runs exist, where they lie, and what was measured on them.

All autoencoders read activations that are computed once (RUNS/activations, the embedded language model's residual
stream) or made (`synthetic:NAME`). An experiment asks for the runs that it needs with `trained`, and for evaluations of
them with `measured`. What is in RUNS already is neither trained nor measured again.

Learning rates are searched once for each family (`search`), and so are the sparsity coefficients that give an L0. Other
experiments use what that found.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.grid import RESULTS, in_processes, keep, plain, train_all
from experiments.verdicts import Claim, as_rows, said
from jaxsae import evals, interop
from jaxsae.config import Config, with_fields
from jaxsae.data import harvested
from jaxsae.evals.subject import Subject
from jaxsae.io import atomic
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.evaluate import open_subject
from jaxsae.run.harvest import harvest as harvest_activations
from jaxsae.run.harvest_config import HarvestConfig

FAMILIES = ("topk", "multi_topk", "batch_topk", "jumprelu", "gated", "prolu_ste", "relu")
# Families whose L0 follows from the weight of a penalty, and the weights that the search tries, by world.
PENALISED = ("gated", "prolu_ste", "relu")
LABELS = {
    "topk": "TopK",
    "multi_topk": "Multi-TopK",
    "batch_topk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    "prolu_ste": "ProLU",
    "relu": "ReLU",
}
# Told apart in greyscale by shade, marker and dash.
STYLES = {
    "topk": {"color": "#000000", "marker": "o", "linestyle": "-"},
    "multi_topk": {"color": "#000000", "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    "batch_topk": {"color": "#1b6ca8", "marker": "s", "linestyle": "-"},
    "jumprelu": {"color": "#1b6ca8", "marker": "D", "linestyle": "--", "markerfacecolor": "white"},
    "gated": {"color": "#c8661a", "marker": "v", "linestyle": "-."},
    "prolu_ste": {"color": "#c8661a", "marker": "P", "linestyle": ":"},
    "relu": {"color": "#8a8a8a", "marker": "^", "linestyle": "--"},
}
EMBEDDED, SYNTHETIC = "embedded", "synthetic"
# The residual stream at three quarters of the embedded model's depth.
HOOK = "blocks.3.hook_resid_post"
# Of runs that are followed through training.
CHECKPOINTS = 8


@dataclass(frozen=True)
class World:
    """What autoencoders are trained on, and the sizes there."""

    n: int
    ks: tuple[int, ...]
    """The values of L0 that are compared."""
    k: int
    """The L0 of the search."""
    families: tuple[str, ...]
    lrs: dict[str, tuple[float, ...]]
    """The learning rates that the search tries, of families that have others than LRS."""
    coefs: dict[str, tuple[float, ...]]
    """The weights of the penalties that the search tries."""


# The learning rates that the search tries: LRS, or others for families whose best one is not among the first.
LRS, SLOWER, FASTER = (3e-3, 6e-3, 1.2e-2), (1.5e-3, 3e-3, 6e-3), (6e-3, 1.2e-2, 2.4e-2)

WORLDS = {
    EMBEDDED: World(
        n=1024,
        ks=(8, 16, 32, 64),
        k=32,
        families=FAMILIES,
        lrs={"jumprelu": SLOWER, "prolu_ste": SLOWER, "batch_topk": FASTER},
        coefs={"gated": (30.0, 60.0, 120.0), "prolu_ste": (10.0, 20.0, 40.0, 80.0), "relu": (20.0, 40.0, 80.0)},
    ),
    SYNTHETIC: World(
        n=512,
        ks=(4, 8, 16, 32),
        k=8,
        families=FAMILIES,
        lrs=dict.fromkeys(("topk", "multi_topk", "batch_topk", "gated", "relu"), FASTER),
        coefs={
            "gated": (14.0, 22.0, 34.0, 45.0),
            "prolu_ste": (4.0, 8.0, 14.0, 22.0),
            "relu": (8.0, 14.0, 20.0, 27.0),
        },
    ),
}


@dataclass(frozen=True)
class Settings:
    runs: Path = Path("runs/quality")
    """Folder of the runs, which all experiments of evaluation quality share."""
    out: Path = RESULTS
    """Folder for the results."""
    seeds: int = 3
    tokens: int = 204_800
    """Of each run."""
    synthetic_tokens: int = 102_400
    """Of each run on synthetic activations."""
    batch_size: int = 256
    harvested: int = 524_288
    """Tokens whose activations runs read from, each in an order of its own."""
    eval_tokens: int = 16_384
    """Held-out tokens of the language model that NMSE and cross-entropy are measured on."""
    workers: int = 2
    """Runs at once, each on its share of the cores."""


@dataclass(frozen=True)
class Run:
    """One autoencoder."""

    family: str = "topk"
    k: int = 32
    """Of families that have one, and the L0 that JumpReLU steers to."""
    coef: float | None = None
    """Weight of the penalty of the others."""
    lr: float = 6e-3
    seed: int = 0
    n: int = 1024
    init: str = "tied"
    auxk: bool = True
    world: str = EMBEDDED

    @property
    def name(self) -> str:
        sparsity = f"k{self.k}" if self.coef is None else f"coef{self.coef:g}"
        more = ("" if self.init == "tied" else f"-{self.init}") + ("" if self.auxk else "-noauxk")
        return f"{self.world}-{self.family}-n{self.n}-{sparsity}-lr{self.lr:g}-seed{self.seed}{more}"

    @property
    def is_followed(self) -> bool:
        """Whether it keeps checkpoints, for what is measured through training."""
        return self == Run(lr=self.lr, seed=self.seed)

    def config(self, settings: Settings) -> Config:
        synthetic = self.world == SYNTHETIC
        tokens = settings.synthetic_tokens if synthetic else settings.tokens
        steps = -(-tokens // settings.batch_size)
        numbers = {
            "activations": "synthetic:zipf" if synthetic else str(activations(settings)),
            "hook": None if synthetic else HOOK,
            "tokens": tokens,
            "batch_size": settings.batch_size,
            "sae.n": self.n,
            "sae.activation": self.family,
            "sae.init": self.init,
            "lr": self.lr,
            "schedule": "linear",
            "lr_end": 0.0,
            "seed": self.seed,
            "log_every": 20,
            "checkpoint_every": -(-steps // CHECKPOINTS) if self.is_followed else 10**6,
            "keep_checkpoints": CHECKPOINTS,
            "eval_tokens": 8192,
            # The default when its results were made.
            "auxk_after": tokens // 5,
        }
        numbers |= {"sae.k": self.k} if self.coef is None else {"sparsity": self.coef}
        numbers |= {"sae.target_l0": float(self.k)} if self.family == "jumprelu" else {}
        numbers |= {} if self.auxk else {"auxk_coef": 0.0}
        return with_fields(Config(), **numbers)


def activations(settings: Settings) -> Path:
    return settings.runs / "activations"


def folder(settings: Settings, run: Run) -> Path:
    return settings.runs / run.name


def harvest(settings: Settings):
    """Compute the language model's activations once, so many that seeds differ in what they read of them."""
    found = harvested.find(activations(settings))
    if found is None or not found.complete:
        where = str(activations(settings))
        harvest_activations(HarvestConfig(where, tokens=settings.harvested, held_out_tokens=32_768))


def trained(settings: Settings, runs: Iterable[Run]) -> dict[Run, dict]:
    """{run: its summary}, in order, each once; trains those that are not in settings.runs."""
    runs = list(dict.fromkeys(runs))
    if any(run.world == EMBEDDED for run in runs):
        harvest(settings)
    summaries = train_all({run.name: run.config(settings) for run in runs}, settings.runs, settings.workers)
    return {run: summaries[run.name] for run in runs}


@dataclass(frozen=True)
class Found:
    """What the search says of a family."""

    lr: float
    coefs: dict[int, float]
    """{L0: weight of the penalty}; empty for families that have a k."""
    nmse: dict[float, float]
    """{learning rate: NMSE at the L0 of the search}."""


def search(settings: Settings, world: str, families: Iterable[str] = ()) -> dict[str, Found]:
    """The best of three learning rates of each family (default: all of the world) at one L0, on the first seed, and
    coefficients for each L0.

    Where a penalty says the L0, several coefficients are trained at every rate. NMSE at the L0 of the search is read
    off the line through them (both in logarithms), and so are the coefficients of every L0.
    """
    sizes = WORLDS[world]
    families = tuple(families) or sizes.families
    lrs_of = {family: sizes.lrs.get(family, LRS) for family in families}
    own = lambda family: [{"coef": c} for c in sizes.coefs[family]] if family in PENALISED else [{"k": sizes.k}]
    runs = {
        (family, lr): [Run(family, lr=lr, n=sizes.n, world=world, **sparsity) for sparsity in own(family)]
        for family in families
        for lr in lrs_of[family]
    }
    summaries = trained(settings, [run for some in runs.values() for run in some])
    found = {}
    for family in families:
        rows = {lr: [summaries[run] for run in runs[family, lr]] for lr in lrs_of[family]}
        at = lambda lr, r=rows: r[lr][0]["nmse"] if len(r[lr]) == 1 else read_off(r[lr], "nmse", [sizes.k])[0]
        nmse = {lr: float(at(lr)) for lr in lrs_of[family]}
        lr, coefs = min(nmse, key=nmse.get), {}
        if family in PENALISED:
            curve = [row | {"coef": run.coef} for row, run in zip(rows[lr], runs[family, lr])]
            coefs = {k: float(f"{c:.3g}") for k, c in zip(sizes.ks, read_off(curve, "coef", sizes.ks))}
        found[family] = Found(lr, coefs, nmse)
    return found


def read_off(rows: list[dict], name: str, l0s: Sequence[float], log: bool = True) -> np.ndarray:
    """`name` at each of l0s, from rows with "l0" and `name`: on straight lines between neighbours, and beyond the ends
    on the line through the last two. L0 is in logarithms, and so is `name` if `log`.
    """
    rows = sorted(rows, key=lambda row: row["l0"])
    x, y = (np.array([row[key] for row in rows], float) for key in ("l0", name))
    x, y, at = np.log(x), np.log(y) if log else y, np.log(np.asarray(l0s, float))
    piece = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    slope = (y[piece + 1] - y[piece]) / (x[piece + 1] - x[piece])
    value = y[piece] + slope * (at - x[piece])
    return np.exp(value) if log else value


def at_l0(found: dict[str, Found], family: str, k: int, world: str = EMBEDDED, **changes) -> Run:
    """The run of a family at its best learning rate whose L0 is, or should be, k."""
    own = found[family]
    sparsity = {"coef": own.coefs[k]} if family in PENALISED else {"k": k}
    return Run(family, lr=own.lr, n=WORLDS[world].n, world=world, **sparsity | changes)


def topk_of_size(lr: float, n: int, **changes) -> Run:
    """TopK with n latents; `lr`, found at the n of the search, falls as 1 / sqrt(n) (Gao et al. 2024, fig. 3)."""
    scaled = float(f"{lr * (WORLDS[EMBEDDED].n / n) ** 0.5:.3g}")
    return Run(lr=scaled, n=n, **changes)


def measured(settings: Settings, runs: Iterable[Run], name: str, config=None, tokens: int | None = None) -> dict:
    """{run: what the evaluation `name` with its flags `config` says of it}, on so many held-out tokens (default:
    settings.eval_tokens), those of the language model with its text, or of the synthetic world.

    Results are kept in settings.runs, and measured again only with other flags or tokens.
    """
    asked = {"tokens": tokens or settings.eval_tokens, "flags": dataclasses.asdict(config) if config else {}}
    # As JSON has it.
    asked = json.loads(json.dumps(asked))
    path = {run: settings.runs / "evaluations" / name / f"{run.name}.json" for run in dict.fromkeys(runs)}
    todo = {
        run.name: (folder(settings, run), run.world, name, config, asked, p)
        for run, p in path.items()
        if result(p, asked) is None
    }
    in_processes(_measure, todo, settings.runs, settings.workers, f"measuring {name}")
    return {run: result(p, asked) for run, p in path.items()}


def _measure(run: Path, world: str, name: str, config, asked: dict, path: Path):
    subject = open_world(run, world, asked["tokens"])
    subject = replace(subject, sae=interop.load(run, subject.mesh), raw=None)
    flags = replace(evals.EvaluationConfigs(), **{name: config}) if config else None
    numbers = evals.measure(name, subject, flags)
    write_result(
        path, asked, {key: value for key, value in numbers.items() if key not in evals.EVALUATIONS[name].apart}
    )


def result(path: Path, asked: dict):
    """What was measured and kept there with such flags; None if there is nothing, or with others."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept["result"] if kept.get("asked") == asked else None


def write_result(path: Path, asked: dict, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps({"asked": asked, "result": numbers}) + "\n")


def open_world(run: Path, world: str, tokens: int) -> Subject:
    """What autoencoders of a world are evaluated on; `run` is any of them. Opened once in a process."""
    if (world, tokens) not in _OPENED:
        text = {} if world == SYNTHETIC else {"lm": "embedded", "text": ("stdlib",)}
        _OPENED[world, tokens] = open_subject(run, EvalConfig(tokens=tokens, mesh=(1, 1), **text), "held_out")
    return _OPENED[world, tokens]


_OPENED: dict[tuple[str, int], Subject] = {}


def finish(settings: Settings, name: str, rows: list[dict], claims: Sequence[Claim], **facts) -> Path:
    """Keep the results of an experiment as NAME.json, and say its verdicts; returns where its figure goes."""
    facts = {"settings": plain(settings), **facts, "claims": as_rows(claims), "rows": rows}
    path = keep(name, facts, settings.out)
    for claim in claims:
        print(f"{claim.claim}: {claim.measure} {said(claim.ours)}: {claim.verdict}")
    print(f"{path} and {path.with_suffix('.png')}")
    return path.with_suffix(".png")
