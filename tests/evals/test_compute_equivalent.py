"""Losses looked up in a table of training: by hand, and on the embedded model's own table."""

import csv

import numpy as np
import pytest

import jaxsae
from jaxsae.evals import EvaluationConfigs, compute_equivalent, measure
from jaxsae.evals.compute_equivalent import Config, read
from jaxsae.evals.downstream import compute_equivalent as equivalent
from jaxsae.lm.weights import find_folder
from tests.evals.subjects import on_files, on_text, random_sae, two_layers
from tests.lm import tiny

HOOK = "blocks.0.hook_resid_post"


def test_a_power_law_is_met_exactly_between_rows_and_at_them():
    compute = np.array([1e3, 1e4, 3e5, 1e6])
    losses = 9 * compute**-0.08
    for c in (1e3, 2345.0, 1e4, 77777.0, 1e6):
        assert equivalent(9 * c**-0.08, compute, losses) == pytest.approx(c, rel=1e-9)


def test_outside_the_table_there_is_none():
    assert equivalent(5.1, [1, 10, 100], [5, 4, 3]) is None
    assert equivalent(2.9, [1, 10, 100], [5, 4, 3]) is None
    assert equivalent(5, [1, 10, 100], [5, 4, 3]) == 1
    assert equivalent(3, [1, 10, 100], [5, 4, 3]) == 100


def test_a_loss_that_rises_on_the_way_is_had_when_it_is_first_reached():
    assert equivalent(4, [1, 10, 100, 1000], [5, 4, 4.5, 3]) == 10
    between = equivalent(4.2, [1, 10, 100, 1000], [5, 4, 4.5, 3])
    assert between == pytest.approx(np.exp(np.interp(np.log(4.2), np.log([4, 5]), [np.log(10), np.log(1)])))


def test_rows_may_come_in_any_order():
    assert equivalent(2.5, [100, 1, 10], [1.25, 5, 2.5]) == 10
    assert equivalent(3.5, [100, 1, 10], [1.25, 5, 2.5]) == equivalent(3.5, [1, 10, 100], [5, 2.5, 1.25])


def test_the_embedded_model_has_a_table():
    table = read(find_folder("embedded") / compute_equivalent.TABLE)
    assert table.unit == "flops" and set(table.losses) == {"novels_nats_per_token", "stdlib_nats_per_token"}
    assert table.compute[-1] == 380990442700800 and table.losses["stdlib_nats_per_token"][-1] < 3.41


@pytest.fixture
def table(tmp_path):
    def write(columns):
        path = tmp_path / "table.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values()))
        return EvaluationConfigs(compute_equivalent=Config(str(path)))

    return write


def test_the_rise_of_the_loss_is_looked_up_from_the_end_of_training(table, tmp_path):
    sae = random_sae(tiny.WIDTH, dtype="float32")
    subject = on_text((1, 1), sae, HOOK, 6, two_layers("float32"))
    config = table({"tokens": [1, 10, 100], "loss": [9.0, 2.0, 5.0], "other_nats_per_token": [2.1, 2.05, 2.0]})
    have, want = measure("compute_equivalent", subject, config), measure("standard", subject)
    assert have["delta_ce"] == want["delta_ce"] and have["ce_substituted"] == want["ce_substituted"]
    loss, other = have["columns"]["loss"], have["columns"]["other_nats_per_token"]
    rise, error = have["delta_ce"], want["delta_ce_se"]
    assert abs(rise) > 0.1
    at = lambda loss: 10 ** np.interp(np.log(loss), np.log([2, 9]), [1, 0])
    assert loss["tokens_equivalent"] == pytest.approx(at(5 + rise), rel=1e-6)
    assert loss["share"] == pytest.approx(at(5 + rise) / 100, rel=1e-6)
    assert loss["share_low"] == pytest.approx(at(5 + rise + 1.96 * error) / 100, rel=1e-6)
    measured = want["ce_substituted"]
    assert 2 < measured < 9 and loss["share_of_loss_as_measured"] == pytest.approx(at(measured) / 100, rel=1e-6)
    # This run never had so high a loss, or so low a one.
    assert other["share"] is None and other["tokens_equivalent"] is None and other["loss"] == 2
    compute_equivalent.figure(have, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"steps": [1, 2], "loss": [3, 2]}, "give at least two rows with a column flops or tokens"),
        ({"flops": [1, 2], "accuracy": [3, 2]}, "the columns flops, accuracy"),
        ({"flops": [1], "loss": [3]}, "has 1 rows"),
        ({"flops": [1, 2], "loss": [3, "?"]}, "no number"),
        ({"flops": [0, 2], "loss": [3, 2]}, "not above 0"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(table, columns, message):
    subject = on_text((1, 1), random_sae(tiny.WIDTH, dtype="float32"), HOOK, 2, two_layers("float32"))
    with pytest.raises(jaxsae.BadInput, match=message):
        measure("compute_equivalent", subject, table(columns))


def test_without_a_table_one_is_asked_for():
    sae = random_sae(tiny.WIDTH, dtype="float32")
    with pytest.raises(jaxsae.BadInput, match=r"give --compute-equivalent.table FILE"):
        measure("compute_equivalent", on_text((1, 1), sae, HOOK, 2, two_layers("float32")))
    missing = EvaluationConfigs(compute_equivalent=Config("nowhere.csv"))
    with pytest.raises(jaxsae.BadInput, match=r"nowhere.csv cannot be read"):
        measure("compute_equivalent", on_text((1, 1), sae, HOOK, 2, two_layers("float32")), missing)
    with pytest.raises(jaxsae.BadInput, match="needs a language model"):
        measure("compute_equivalent", on_files((1, 1), random_sae(12, dtype="float32"), np.ones((2, 5, 12), "f")))
