"""Evaluations by name: their flags, and what is refused."""

import dataclasses

import numpy as np
import pytest

import jaxsae
from jaxsae import evals
from jaxsae.cli import parse
from tests.evals.subjects import on_files, random_sae


def test_names():
    assert evals.chosen(("geometry", "standard", "geometry")) == ("standard", "geometry")
    assert evals.chosen(("all",)) == tuple(evals.EVALUATIONS)
    with pytest.raises(
        jaxsae.BadInput, match="--metrics loss is unknown: allowed are all, standard, compute_equivalent"
    ):
        evals.chosen(("standard", "loss"))


def test_every_evaluation_says_how_it_measures_and_brings_its_flags():
    for name, evaluation in evals.EVALUATIONS.items():
        assert len(evaluation.protocol.split()) > 20, name
        for field in dataclasses.fields(evaluation.Config):
            assert getattr(getattr(evals.EvaluationConfigs(), name), field.name) == field.default


def test_flags_of_the_command():
    flags = "--metrics geometry later_layers --geometry.other o --later-layers.batch 3 --text a b --split all --step 7"
    command, _ = parse(["eval", "runs/x", *flags.split()])
    assert command.folder == "runs/x" and command.metrics == ("geometry", "later_layers")
    assert command.evaluations.geometry.other == "o" and command.evaluations.later_layers.batch == 3
    assert command.on.text == ("a", "b") and command.on.split_read == "all" and command.on.step == 7
    assert parse(["eval", "x"])[0].on.split_read == "held_out"
    assert parse(["eval", "x", "--text", "a", "--split", "held_out"])[0].on.split_read == "held_out"


def test_a_language_model_that_is_needed_is_asked_for():
    subject = on_files((1, 1), random_sae(12, dtype="float32"), np.ones((2, 5, 12), "f"))
    with pytest.raises(jaxsae.BadInput, match="--metrics later_layers needs a language model"):
        evals.measure("later_layers", subject)
