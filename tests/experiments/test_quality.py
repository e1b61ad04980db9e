"""The experiments of evaluation quality: what they read off runs, what they conclude, and the table of claims."""

import json

import numpy as np
import pytest

from experiments import claims, progressive_codes, quality, topk_vs_baselines
from experiments.quality import EMBEDDED, FAMILIES, SYNTHETIC, WORLDS, Found, Run, Settings, at_l0
from experiments.verdicts import (
    DIRECTION,
    FAILS,
    HOLDS,
    ONE,
    OPEN,
    Claim,
    as_rows,
    interval,
    interval_of_ratio,
    verdict,
)


def test_values_are_read_off_power_laws():
    rows = [{"l0": x, "nmse": 3 * x**-0.5} for x in (40.0, 10.0, 20.0)]
    # Between the points, at one, and beyond both ends.
    assert quality.read_off(rows, "nmse", [5, 10, 30, 80]) == pytest.approx([3 * x**-0.5 for x in (5, 10, 30, 80)])
    rows = [{"l0": x, "mcc": 1 + 2 * np.log(x)} for x in (4.0, 16.0)]
    assert quality.read_off(rows, "mcc", [8], log=False) == pytest.approx([1 + 2 * np.log(8)])


def test_intervals_are_students():
    # Of 1, 2, 3: standard error 1 / sqrt(3), times 4.3027 of two degrees of freedom.
    assert interval([1, 2, 3]) == pytest.approx(
        {"mean": 2, "low": 2 - 2.4841, "high": 2 + 2.4841, "seeds": 3}, abs=1e-3
    )
    ratio = interval_of_ratio([0.5, 0.5 * np.e, 0.5 / np.e])
    assert ratio["mean"] == pytest.approx(0.5) and ratio["high"] == pytest.approx(0.5 * np.exp(2.4841), rel=1e-3)
    assert interval([1.0])["low"] is None
    with pytest.raises(ValueError, match="no interval"), np.errstate(invalid="ignore"):
        interval_of_ratio([0.5, -0.1, 0.2])


@pytest.mark.parametrize(
    ("mean", "low", "high", "bounds", "want"),
    [
        (1.2, 1.1, 1.3, {"above": 1}, HOLDS),
        (1.2, 1.1, 1.3, {"above": 1, "size": 1.5}, DIRECTION),
        (1.6, 1.4, 1.8, {"above": 1, "size": 1.5}, HOLDS),
        (1.2, 0.9, 1.5, {"above": 1}, OPEN),
        (0.8, 0.7, 0.9, {"above": 1}, FAILS),
        (0.8, 0.7, 0.9, {"below": 1}, HOLDS),
        (0.8, 0.7, 0.9, {"below": 1, "size": 0.5}, DIRECTION),
        (0.4, 0.3, 0.5, {"below": 1, "size": 0.5}, HOLDS),
        (1.2, 1.1, 1.3, {"below": 1}, FAILS),
        (1.2, 0.9, 1.5, {"below": 1}, OPEN),
    ],
)
def test_verdicts(mean, low, high, bounds, want):
    ours = {"mean": mean, "low": low, "high": high, "seeds": 3}
    assert verdict(ours, **bounds) == want
    assert verdict(ours | {"seeds": 2}, **bounds) == ONE


def planted(world, scale):
    """Rows of all families and seeds whose first metric is scale[family] / sqrt(L0), with a little noise."""
    name, other = topk_vs_baselines.METRICS[world]
    rows = []
    for family in FAMILIES:
        for seed in range(3):
            for k in WORLDS[world].ks:
                # Families with a penalty miss the L0 that they were to have.
                l0 = k * (1.3 if family in quality.PENALISED else 1.0)
                value = scale.get(family, 1.0) * (1 + 0.003 * seed) * l0**-0.5
                rows.append({"family": family, "k": k, "seed": seed, "l0": l0, name: value, other: value**1.5})
    return rows


def test_families_are_compared_at_equal_l0():
    scale = {"relu": 2.0, "gated": 0.9, "batch_topk": 0.95}
    found = {c.claim: c for c in topk_vs_baselines.claims(planted(EMBEDDED, scale), planted(SYNTHETIC, {"topk": 0.5}))}
    relu, gated = (found[f"TopK reconstructs better than {name} at equal L0"] for name in ("ReLU", "Gated"))
    assert relu.verdict == HOLDS and relu.ours["mean"] == pytest.approx(0.5, rel=1e-3)
    assert gated.verdict == FAILS and gated.ours["mean"] == pytest.approx(1 / 0.9, rel=1e-3)
    assert found["BatchTopK reconstructs better than TopK"].verdict == HOLDS
    loss = found["TopK improves on ReLU more in the language model's loss than in MSE"]
    assert loss.verdict == HOLDS and loss.ours["mean"] == pytest.approx(0.5**0.5, rel=1e-3)
    assert found["TopK finds known features better than ReLU"].verdict == FAILS


def test_a_code_is_progressive_if_nothing_rises():
    assert progressive_codes.worst_rise({"l0": [1, 4, 2], "nmse": [0.5, 0.1, 0.3]}) == 1
    assert progressive_codes.worst_rise({"l0": [1, 2, 4, 8], "nmse": [0.5, 0.2, 0.3, 0.1]}) == pytest.approx(1.5)


def test_runs_are_named_by_what_they_are():
    found = {"topk": Found(6e-3, {}, {}), "relu": Found(3e-3, {32: 41.5}, {})}
    runs = [at_l0(found, "topk", 32), at_l0(found, "relu", 32), at_l0(found, "topk", 32, auxk=False)]
    runs += [quality.topk_of_size(6e-3, 4096, init="orthogonal"), at_l0(found, "topk", 8, SYNTHETIC, seed=1)]
    assert runs[0] == Run() and len({run.name for run in runs}) == len(runs)
    configs = [run.config(Settings()) for run in runs]
    assert configs[1].training.sparsity == 41.5 and configs[2].training.auxk_weight("topk") == 0
    # A quarter of the learning rate at 16 times the latents would be 1.5e-3; at 4 times it is half.
    assert configs[3].training.optimizer.lr == 3e-3 and configs[3].sae.init == "orthogonal"
    assert configs[4].data.activations == "synthetic:zipf" and configs[4].sae.n == WORLDS[SYNTHETIC].n


def test_measurements_are_kept_with_what_was_asked(tmp_path):
    path = tmp_path / "evaluations" / "some.json"
    assert quality.result(path, {"tokens": 1}) is None
    quality.write_result(path, {"tokens": 1}, {"nmse": 0.5})
    assert quality.result(path, {"tokens": 1}) == {"nmse": 0.5} and quality.result(path, {"tokens": 2}) is None


def test_claims_of_all_results_are_one_table(tmp_path):
    ours = {"mean": 1.2, "low": 1.05, "high": 1.35, "seeds": 3}
    own = Claim("recall | is better", "A paper", "more than 1.5", "ratio", ours, above=1, size=1.5)
    (tmp_path / "explanations.json").write_text(json.dumps({"claims": as_rows([own])}))
    pair = {"e2e": {"mean": 0.4, "low": 0.3, "high": 0.49, "seeds": 5, "range": [1, 2]}}
    pair["e2e_downstream"] = pair["e2e"] | {"mean": 1.1, "low": 1.05, "high": 1.2}
    titles = ("L0 at equal CE increase", "living latents at equal CE increase", "CE increase at equal L0")
    pareto = {"layer 3": {f"{title}, of local's": pair for title in titles}}
    (tmp_path / "e2e_pareto.json").write_text(json.dumps(pareto))
    found = claims.gathered(tmp_path)
    assert [row["verdict"] for row in found["e2e_pareto"]] == [HOLDS, FAILS] * 3
    lines = claims.table(found).splitlines()
    assert r"recall \| is better" in lines[3] and "1.20 (1.05 to 1.35) | **direction only** | 3 |" in lines[3]
    assert len(lines) == 2 + 2 + 7 and claims.count(found) == "7 claims. direction only: 1, holds: 3, does not hold: 3"
