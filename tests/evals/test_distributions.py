"""Distributions of L0 and of latents, against plain Python."""

from itertools import pairwise

import numpy as np
import pytest

from jaxsae.evals import distributions, measure, standard, subject
from tests.evals.subjects import MESHES, on_files, random_sae


def test_quantiles_and_bins_of_l0_are_those_of_the_tokens():
    l0 = np.random.default_rng(0).integers(3, 200, (6, 50))
    kept = np.random.default_rng(1).random((6, 50)) < 0.8
    halves = [distributions.count_l0(l0[part], kept[part]) for part in (slice(0, 2), slice(2, 6))]
    have = distributions.of_l0(distributions.add_counts(*halves))
    values = sorted(l0[kept])
    for q in (5, 25, 50, 75, 95):
        assert have[f"l0_q{q:02}"] == np.quantile(values, q / 100, method="inverted_cdf")
    edges = have["l0_histogram_edges"]
    assert len(edges) - 1 <= 64 and len({b - a for a, b in pairwise(edges)}) == 1
    assert have["l0_histogram"] == [sum(a <= v < b for v in values) for a, b in pairwise(edges)]


def test_without_tokens_there_are_no_quantiles():
    have = distributions.of_l0(distributions.count_l0(np.ones((2, 3)), np.zeros((2, 3))))
    assert have["l0_q50"] is None and sum(have["l0_histogram"]) == 0
    assert distributions.of_latents(np.zeros(4), np.zeros(4), 0, 2)["eval_dead_fraction"] == 1


def test_dead_latents_are_in_no_histogram_and_the_densest_are_averaged():
    fired, written = np.array([0, 10, 1, 5, 0, 10]), np.array([0, 1, 10, 0.1, 0, 1])
    have = distributions.of_latents(fired, written, 10, 3)
    assert have["eval_dead_fraction"] == pytest.approx(1 / 3) and have["densest_d"] == pytest.approx(2.5 / 3)
    assert have["freq_over_10_percent"] == 0.5 and have["normalized_freq_over_10_percent"] == pytest.approx(2.5 / 2.6)
    assert sum(have["density_histogram"]) == sum(have["importance_histogram"]) == 4
    # 10 of 10 tokens lie in the last bin, whose edge is included.
    assert have["density_histogram"][-1] == 2
    assert have["importance_histogram_edges"][0] == pytest.approx(-2)
    assert have["importance_histogram_edges"][-1] == pytest.approx(0)


def test_no_number_depends_on_the_mesh_where_batches_do(x64, monkeypatch):
    """On more devices batches are larger: the mean that explained_variance_per_token takes must not be."""
    for module in (subject, standard):
        monkeypatch.setattr(module, "ROWS", 40)
    x, sae = np.random.default_rng(0).normal(size=(30, 5, 12)) + 1, random_sae(12)
    subjects = [on_files(mesh, sae, x) for mesh in MESHES]
    assert len({len(list(each.batches())) for each in subjects}) == 2
    first, second = (measure("standard", each) for each in subjects)
    for name, value in first.items():
        if value is not None and not name.endswith(("nmse_se", "fvu_se")):
            values = [[v for v in np.ravel(a) if v is not None] for a in (second[name], value)]
            np.testing.assert_allclose(*values, rtol=1e-9, err_msg=name)
