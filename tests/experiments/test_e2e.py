"""What the end-to-end experiments compute of their runs, on curves whose answers are known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments import agreement
from experiments import e2e_pareto as pareto
from experiments.grid import keep, train_all
from jaxsae.config import Config
from jaxsae.data.config import DataConfig
from jaxsae.errors import BadInput
from jaxsae.evals.topk_curve import Curve
from jaxsae.lm.config import LMConfig
from jaxsae.sae.config import SAEConfig
from tests import configs

SHARE = {"local": 1.0, "e2e": 0.4, "e2e_downstream": 0.5}


def rows(seed=0, noise=1.0):
    """CE increase 1 / L0 times a factor for each type: each needs SHARE of local's L0 at equal CE increase."""
    out = []
    for kind, share in SHARE.items():
        for sparsity in (1.0, 2.0, 4.0, 8.0):
            l0 = 100 / sparsity
            row = {"layer": 3, "type": kind, "sparsity": sparsity, "seed": seed, "matched": False, "l0": l0, "kl": 0.0}
            out.append(row | {"delta_ce": noise * share / l0, "alive": 2 * l0})
    return out


def test_ratios_of_power_laws():
    for kind in ("e2e", "e2e_downstream"):
        for key, of in (("l0", pareto.curve), ("alive", pareto.curve), ("l0", pareto.turned)):
            # The slope is 1, so at equal L0 the CE increase has the same ratio.
            at, found = pareto.ratios([rows()], kind, key, of)
            assert at[0] < at[-1] and found == pytest.approx(np.full((1, 20), SHARE[kind]))


def test_seeds_are_compared_over_the_same_range():
    seeds = [rows(), rows(1, noise=1.3)]
    at, found = pareto.ratios([seeds[0], [row for row in seeds[1] if row["sparsity"] < 8]], "e2e", "l0")
    assert found == pytest.approx(np.full((2, 20), 0.4))
    # From local's least CE increase, that of the second seed, to the largest of e2e, that of its sparsity 4.
    assert at[[0, -1]] == pytest.approx([1.3 * 0.01, 1.3 * 0.4 * 0.04])


def test_curves_without_common_values_have_no_ratio():
    apart = [row | {"delta_ce": row["delta_ce"] * (100 if row["type"] == "local" else 1)} for row in rows()]
    assert pareto.ratios([apart], "e2e", "l0") is None
    with pytest.raises(ValueError, match="in common"):
        pareto.matched(apart)
    assert pareto.interval(None)["seeds"] == 0


def test_matched_sparsities_have_equal_ce_increase():
    found = pareto.matched(rows())
    # delta_ce = share * sparsity / 100; all types reach from local's least to the largest of e2e.
    want = (0.01 * 0.4 * 0.08) ** 0.5
    assert {kind: SHARE[kind] * s / 100 for kind, s in found.items()} == pytest.approx(
        dict.fromkeys(found, want), rel=5e-3
    )


def test_triples_are_the_nearest():
    some = [row for row in rows() if row["sparsity"] != 2.0 or row["type"] != "local"]
    found = pareto.triple(some, "l0")
    assert found["spread"] == 1.0 and len({found[kind]["l0"] for kind in pareto.TYPES}) == 1


def test_intervals_over_seeds_hold_the_mean():
    values = np.array([0.4, 0.5, 0.45, 0.42, 0.48])
    slope = np.exp(np.linspace(-1, 1, 20))
    found = pareto.interval((np.linspace(1, 2, 20), values[:, None] * slope))
    assert found["low"] < found["mean"] < found["high"] and found["seeds"] == 5
    assert found["mean"] == pytest.approx(np.exp(np.log(values).mean()), abs=1e-4)
    assert found["range"] == [1, 2]
    assert found["at its ends"] == pytest.approx([found["mean"] / np.e, found["mean"] * np.e], rel=1e-3)
    assert pareto.interval((slope, 0.4 * slope[None]))["low"] is None


def test_runs_trained_to_equal_ce_increase_are_compared_seed_by_seed():
    some = [row | {"matched": True} for row in rows() + rows(1) if row["sparsity"] == 2]
    some += [row | {"l0": 1.0} for row in rows()]
    assert pareto.of_matched(some, "delta_ce") == {"e2e": [0.4, 0.4], "e2e_downstream": [0.5, 0.5]}


def tiny(tiny_lm, tiny_text, cache, **training):
    return Config(
        lm=LMConfig(str(tiny_lm), "blocks.0.hook_resid_post"),
        data=DataConfig((str(tiny_text),), context=32, cache=str(cache)),
        sae=SAEConfig(32, 4),
        training=configs.training(tokens=1024, batch_size=256, mesh=(1, 1), **training),
        eval_tokens=512,
    )


@pytest.mark.slow
def test_runs_of_a_grid_are_trained_once(tiny_lm, tiny_text, tmp_path):
    configs = {f"seed{seed}": tiny(tiny_lm, tiny_text, tmp_path / "cache", seed=seed) for seed in (0, 1)}
    summaries = train_all(configs, tmp_path / "runs", 2)
    assert list(summaries) == ["seed0", "seed1"] and summaries["seed0"]["loss"] != summaries["seed1"]["loss"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("seed*/**/*") if p.is_file()}
    assert train_all(configs, tmp_path / "runs", 1) == summaries
    assert before == {p: p.stat().st_mtime_ns for p in before}
    other = {"seed0": replace(configs["seed0"], sae=SAEConfig(32, 5))}
    with pytest.raises(BadInput, match=r"--sae\.k was 4, not 5"):
        train_all(other, tmp_path / "runs", 1)


def test_results_say_what_they_were_made_with(tmp_path):
    result = json.loads(keep("some", {"value": 1}, tmp_path).read_text())
    assert result["value"] == 1 and {"cores", "commit", "jax", "jaxsae"} <= set(result["manifest"])


def test_latents_are_enough_where_no_more_of_them_are_too_few():
    ks, m = np.array([0, 5, 10, 15, 20]), np.array([0.0, 1.6, 1.4, 1.7, 1.8])
    curve = Curve(2.0, 1.8, np.arange(30), np.ones(30), ks, m)
    found = {level: agreement.enough(curve, level) for level in (0.0, 0.7, 0.75, 0.9, 0.95)}
    assert found == {0.0: 0, 0.7: 5, 0.75: 15, 0.9: 20, 0.95: None}
