"""benchmarks/lm.py with made-up answers of its workers: nothing is measured."""

from argparse import Namespace

import pytest

from benchmarks import lm


def answers(value):
    """Of three rounds, the first a warm-up."""
    said = lambda times, value: [
        {"ms": [ms], "cpu_ms": [2 * ms], "losses": [value], "peak_rss_mb": 100 + ms} for ms in times
    ]
    return {("transformers", "all"): said([9, 30, 20], value), ("jaxsae", "all"): said([1, 10, 16], 0.5)}


def rows(value):
    facts = {name: {"versions": {name[0]: "1.0"}} for name in answers(value)}
    return lm.rows("gpt2", Namespace(tokens=4096, context=64), facts, answers(value))


def test_the_least_time_after_the_warm_up_is_compared(capsys):
    theirs, ours = rows(0.5001)
    assert (theirs["ms_min"], theirs["cpu_ms"], theirs["ratio_to_jaxsae"]) == (20, 40, 2)
    assert (ours["ms_min"], ours["ms_median"], ours["tokens_per_second"]) == (10, 13, 409_600)
    lm.show([theirs, ours])
    assert "transformers 1.0, all" in capsys.readouterr().out


def test_what_computes_something_else_is_not_compared():
    with pytest.raises(SystemExit, match="they compute different things"):
        rows(0.51)
