"""The scaling experiments: their runs are allowed, and tables with planted laws give those laws."""

import importlib
import inspect
import json
import re
from dataclasses import asdict, fields

import numpy as np
import pytest

from experiments import (
    context,
    default_rate,
    scaling_batch,
    scaling_grid,
    scaling_layers,
    scaling_n,
    scaling_nk,
    scaling_synthetic,
    scaling_tokens,
)
from experiments.default_rate import Point
from jaxsae.config import Config, from_dict, to_dict
from jaxsae.data.config import is_synthetic
from jaxsae.errors import BadInput
from jaxsae.lm.weights import find_folder, read_config
from jaxsae.run.checks import check_objective
from jaxsae.training.config import check_division

NAMES = ("n", "nk", "compute", "tokens", "lr", "noise", "e2e", "batch", "layers", "subject", "synthetic")
MODULES = [f"experiments.scaling_{name}" for name in NAMES] + ["experiments.context"]


@pytest.mark.parametrize("module", MODULES)
def test_runs_of_every_experiment_are_allowed(module):
    module = importlib.import_module(module)
    presets = ({}, {"preset": "gpt2-small"}) if "preset" in inspect.signature(module.configs).parameters else ({},)
    embedded = read_config(find_folder("embedded"))
    for preset in presets:
        configs = module.configs(**preset)
        assert len(set(configs)) == len(configs) > 1
        for name, config in configs.items():
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=+,@-]*", name) and config.run is None
            assert from_dict(json.loads(json.dumps(to_dict(config))), name) == config
            check_division(config.sae, config.training, config.data.context, 1, 1)
            if config.lm.lm == "embedded" and not is_synthetic(config.data.activations):
                check_objective(config, embedded, config.lm.hook or "blocks.4.hook_resid_post")
        assert len({json.dumps(to_dict(config), sort_keys=True) for config in configs.values()}) == len(configs)
    claim, command = inspect.getdoc(module).split("\n\n")[1:3]
    assert claim.startswith("Claim") and command.strip().startswith(f"python -m {module.__name__}")


def test_experiments_of_one_grid_have_the_same_runs():
    runs = [
        importlib.import_module(f"experiments.scaling_{name}").configs() for name in ("n", "nk", "tokens", "compute")
    ]
    for others in runs[1:]:
        assert {name: others[name] for name in runs[0]} == runs[0]
    sizes = {(config.sae.n, config.sae.k) for config in runs[0].values()}
    assert len({n for n, _ in sizes}) >= 5 and len({k for _, k in sizes}) >= 4
    with pytest.raises(BadInput, match="gpt3 is unknown: allowed are embedded, gpt2-small"):
        scaling_nk.configs(preset="gpt3")


def planted(settings, loss, **facts) -> list[dict]:
    """Rows as trained runs of the grid give them, with a loss that is a function of n and k."""
    rows = []
    for name, config in scaling_grid.grid(settings).items():
        summary = {
            "nmse": float(loss(config.sae.n, config.sae.k)),
            "dead_fraction": 0.1 if config.sae.n > 8000 else 0.0,
        }
        rows.append(scaling_grid.row_of(name, config, summary | {"tokens": config.training.batch.tokens}) | facts)
    return rows


def test_a_planted_table_gives_its_law(tmp_path, capsys):
    rng = np.random.default_rng(0)
    law = lambda n, k: np.exp(1 - 0.1 * np.log(k) - 0.3 * np.log(n) - 0.02 * np.log(k) * np.log(n)) + 0.08 * k**-0.25
    settings = scaling_nk.Settings(out=tmp_path)
    rows = planted(settings, lambda n, k: law(n, k) * np.exp(0.002 * rng.standard_normal()))
    joint = scaling_grid.fitted("joint", rows, ("n", "k"))
    drawn = []
    scaling_grid.finish("planted", settings, rows, {"all": scaling_grid.entry(joint)}, drawn.append)
    document = json.loads((tmp_path / "planted.json").read_text())
    truth = {"alpha": 1, "beta_k": -0.1, "beta_n": -0.3, "gamma": -0.02, "zeta": np.log(0.08), "eta": -0.25}
    for name, value in truth.items():
        low, high = document["all"]["intervals"][name]
        assert low < value < high, name
    assert document["more than 5% dead"] == {f"n=8192-k={k}": 0.1 for k in settings.ks}
    assert len(document["runs"]) == 24 and drawn == [tmp_path / "planted.png"]
    said = capsys.readouterr().out
    assert "all: alpha" in said and "are dead in n=8192-k=4" in said
    # The table is one that the command reads.
    from jaxsae import cli

    assert (
        cli.main(["fit", str(tmp_path / "planted.csv"), "--law", "power_irreducible", "--where", "k=16", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["points"] == 6


def test_the_best_rate_is_the_bottom_of_a_parabola():
    rates = 1e-3 * 2.0 ** np.arange(-3, 4)
    best = 1.3e-3
    losses = np.exp(0.2 * np.log(rates / best) ** 2)
    assert default_rate.best_rate(rates[::-1], losses[::-1], 2 * best) == pytest.approx((best, 2 ** (0.2 * np.log(2))))
    assert default_rate.best_rate(rates, rates) is None and default_rate.best_rate(rates, 1 / rates) is None


def test_the_default_rate_is_read_off_the_best_rates_of_points():
    law = lambda p: 5e-3 * (p.n / 2048) ** -0.4 * (p.tokens / 1e6) ** -0.3 * (p.batch_size / 2048) ** 0.5 * p.k / 16
    rows = [
        {**asdict(point), "lr": lr, "nmse": float(np.exp(0.1 * np.log(lr / law(point)) ** 2))}
        for point in default_rate.SEARCH
        for lr in law(point) * 2.0 ** np.arange(-1, 2)
    ]
    # One that diverged says nothing, and a point whose best rate is at an end is left out of the law.
    rows.append({**rows[0], "nmse": None})
    best = default_rate.best_rates(
        [row for row in rows if row["n"] != 256 or row["lr"] < 1.5 * law(Point(**point_of(row)))]
    )
    assert [point["lr"] is None for point in best if point["n"] == 256] == [True]
    found = default_rate.law_of(best, ("n", "k", "tokens", "batch_size"))
    for name, value in {"c": 5e-3, "n": -0.4, "k": 1.0, "tokens": -0.3, "batch_size": 0.5}.items():
        assert found[name]["value"] == pytest.approx(value, rel=1e-6)
    names = [point.name for point in (*default_rate.SEARCH, *default_rate.HELD_OUT)]
    assert len(set(names)) == len(names)


def point_of(row: dict) -> dict:
    return {field.name: row[field.name] for field in fields(Point)}


def test_tokens_to_convergence_of_a_known_curve():
    tokens = np.arange(1, 1001) * 2048.0
    log = [{"tokens": t, "nmse": 0.1 + 30 * t**-0.5} for t in tokens]
    at, loss = scaling_tokens.curve(log)
    assert len(at) <= scaling_tokens.POINTS and at[0] > scaling_tokens.BEGINNING * tokens[-1]
    # 30 T^-0.5 is a tenth of 0.1.
    assert scaling_tokens.converged(at, loss, 0.1) == pytest.approx(9e6, rel=0.05)
    assert "more than ten times" in scaling_tokens.converged(at, loss, 0.01)
    straight = [{"tokens": t, "nmse": t**-0.2} for t in tokens]
    assert "anything from 0" in scaling_tokens.converged(*scaling_tokens.curve(straight), 0.1)


def test_latents_belong_to_the_feature_in_whose_subspace_they_lie():
    directions = np.eye(6)  # three features of two dimensions
    decoder = np.array([[1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 5, 1, 0], [1, 0, 1, 0, 1, 0]], float)
    length = scaling_synthetic.shares(decoder, directions, 2)
    np.testing.assert_allclose(length[3], 3**-0.5)
    np.testing.assert_allclose(length[:3].max(1), [1, 1, 5 / 26**0.5])
    assert scaling_synthetic.counts(length) == {"found": 2, "most": 2}


def test_positions_are_compared_before_and_after_the_trained_context():
    values = lambda late: {metric: [9.0, 1.0, 3.0, late, None] for metric in context.MEASURED}
    found = context.compared({3: values(8.0), 5: values(4.0)}, 3)
    assert found["positions 1 to 2"]["nmse"] == {"3": 2.0, "5": 2.0}
    assert found["positions 3 and later"]["delta_ce"] == {"3": 8.0, "5": 4.0}


def test_of_each_batch_size_the_best_rate_counts():
    rows = [{"batch_size": b, "lr": r, "nmse": abs(np.log(r * b))} for b in (1, 4) for r in (0.2, 0.9, 2.0)]
    best = scaling_batch.best_of(rows)
    assert [(row["lr"], row["rate is inside"]) for row in best] == [(0.9, True), (0.2, False)]


def test_pictures_of_several_fits(tmp_path):
    rng = np.random.default_rng(0)
    settings = scaling_nk.Settings()
    rows = planted(settings, lambda n, k: (0.05 + n**-0.4) * np.exp(0.01 * rng.standard_normal()))
    fits = {f"k {k}": scaling_grid.try_fit("power", scaling_grid.select(rows, k=k)) for k in settings.ks}
    fits["none"] = scaling_grid.try_fit("power", [])
    assert isinstance(fits["none"], str) and scaling_grid.entry(fits["none"]) == {"not fitted": fits["none"]}
    scaling_grid.draw_fits(fits, tmp_path / "fits.png")
    assert (tmp_path / "fits.png").read_bytes()[:4] == b"\x89PNG"


def test_rates_follow_the_law_that_was_found():
    runs = scaling_grid.grid(scaling_grid.Settings(lr=(0.05, -0.5)))
    assert all(c.training.optimizer.lr == pytest.approx(0.05 * c.sae.n**-0.5) for c in runs.values())
    assert isinstance(next(iter(runs.values())), Config)


def test_claims_are_judged_by_the_intervals_of_fits():
    rng = np.random.default_rng(0)
    settings = scaling_n.Settings()
    rows = planted(settings, lambda n, k: (0.1 + 2 * n**-0.5) * np.exp(0.003 * rng.standard_normal()))
    verdicts = {c.claim: c.verdict for c in scaling_n.claims(scaling_n.laws(settings, rows))}
    assert len(verdicts) == 2 * len(settings.at)
    assert all(v == "holds" for claim, v in verdicts.items() if "irreducible" in claim)
    # What the data do not bound is no claim.
    assert scaling_n.claims({"k 4": {"power": "not fitted", "power_irreducible": "not fitted"}}) == []
    a = {"mean": 2.0, "low": 1.7, "high": 2.4, "seeds": 8}
    b = {"mean": 1.0, "low": 0.6, "high": 1.3, "seeds": 6}
    expected = {"mean": 1.0, "low": 1 - np.hypot(0.3, 0.3), "high": 1 + np.hypot(0.4, 0.4), "seeds": 6}
    assert scaling_grid.difference(a, b) == pytest.approx(expected) and scaling_grid.difference(a, None) is None


def test_layers_are_compared_over_sizes():
    settings = scaling_layers.Settings(layers=3)
    rows = [
        {"hook": f"blocks.{layer}.{place}", "n": n, "nmse": loss * (1 + 1e-6 * n)}
        for place in scaling_layers.PLACES
        for layer, loss in enumerate((0.1, 0.3, 0.2))
        for n in settings.sizes
    ]
    claims = scaling_layers.claims(settings, rows)
    assert [round(c.ours["mean"], 6) for c in claims] == pytest.approx([3, 2 / 3, 1.5, 1.5])
    assert [c.verdict for c in claims] == ["holds"] * 4 and {c.ours["seeds"] for c in claims} == {4}
