"""Where probe tasks come from: folders, the package sae-probes, Python source."""

import csv
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

import jaxsae
from jaxsae.evals.probes import python_text, tasks
from jaxsae.evals.probes.python_text import QUESTIONS, places


def write(path, rows):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def row(task, label, number, split=None):
    return {"task": task, "label": label, "text": f"{task} {label} {number}"} | ({"split": split} if split else {})


def test_a_folder_keeps_its_splits(tmp_path):
    rows = [row("a", i % 2, i, "train" if i < 6 else "test") for i in range(10)]
    write(tmp_path / "t.jsonl.gz", rows + [row("b", i % 2, i) for i in range(10)])
    a, b = tasks.read_folder(tmp_path)
    assert (a.name, b.name) == ("a", "b")
    assert {(t, l, h) for t, l, h in zip(a.texts, a.labels, a.train)} == {
        (r["text"], r["label"], r["split"] == "train") for r in rows
    }
    # Without splits, half of each class.
    assert [(b.labels[b.train] == label).sum() for label in (0, 1)] in ([2, 3], [3, 2])
    limited = a.limited(2)
    assert limited.train.sum() == 2 and len(limited.texts) == 4


@pytest.mark.parametrize(
    "lines, says",
    [
        ('{"task": "a", "text": "x"}', "t.jsonl:1 is no JSON object with task, text and label"),
        ('{"task": "a", "text": "x", "label": 2}', "label 0 or 1"),
        ('{"task": "a", "text": "x", "label": 1, "split": "dev"}', "split .if there is one. train or test"),
        ("nothing", "t.jsonl:1 is no JSON object"),
        ('{"task": "a", "text": "x", "label": 1}', "the probe task a lacks texts of one class in its split train"),
    ],
)
def test_lines_that_are_no_examples_are_refused(tmp_path, lines, says):
    (tmp_path / "t.jsonl").write_text(lines)
    with pytest.raises(jaxsae.BadInput, match=says):
        tasks.read_folder(tmp_path)


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(jaxsae.BadInput, match=r"holds no \.jsonl or \.jsonl\.gz files"):
        tasks.read_folder(tmp_path)


def test_a_folder_of_61_tasks_is_read(shared):
    read = tasks.read_folder(shared("data/probe61"))
    assert len(read) == 61 and read[0].name == "rt_sentence_positive"
    assert (read[0].train.sum(), (~read[0].train).sum()) == (800, 200)


def test_a_package_that_is_not_installed_is_asked_for(monkeypatch):
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(jaxsae.BadInput, match=r"install jaxsae\[probes\]"):
        tasks.sae_probes_folder()


def test_tasks_of_sae_probes_are_split_as_the_package_splits_them(tmp_path, monkeypatch):
    zstandard = pytest.importorskip("zstandard")
    targets = np.where(np.random.default_rng(0).random(700) < 0.5, "yes", "no")
    targets[:350], targets[350:] = "yes", "no"

    def table(path, columns, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zstandard.open(path, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([columns, *rows])

    kinds = [("cleaned_data/7_good one.csv", "Binary Classification"), ("cleaned_data/8_x.csv", "Continuous Data")]
    table(tmp_path / "data/probing_datasets_MASTER.csv.zst", ["Dataset save name", "Data type"], kinds)
    prompts = [(f'text {i},\n"quoted"', t) for i, t in enumerate(targets)]
    table(tmp_path / "data/cleaned_data/7_good one.csv.zst", ["prompt", "target"], prompts)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: spec)
    (task,) = tasks.read_sae_probes(tasks.sae_probes_folder())
    assert task.name == "7_good one" and task.train.sum() == 600 and len(task.texts) == 699
    # Plainly: 300 of each class to fit to, then 50 of one and 49 of the other, from one generator.
    random, y = np.random.RandomState(42), (targets == "yes").astype(int)
    train = [random.choice(np.flatnonzero(y == label), 300, replace=False) for label in (1, 0)]
    rest = [np.setdiff1d(np.flatnonzero(y == label), own) for label, own in zip((1, 0), train)]
    test = [random.choice(own, size, replace=False) for own, size in zip(rest, (50, 49))]
    order = [*random.permutation(np.concatenate(train)), *random.permutation(np.concatenate(test))]
    assert task.texts == [prompts[i][0] for i in order]
    np.testing.assert_array_equal(task.labels, y[order])


SOURCE = (
    "#" * 160
    + '''
import os, sys

class Reader(Base):
    """Reads lines. Slowly."""

    def lines(self, path, *, size=1):
        # one file
        for line in open(path):
            if line[len(sys.argv)]:
                raise ValueError("no line")
        total = size
        return total.count(size)
'''
)


def answers(question):
    """The words that a question is answered with yes and with no."""
    asked, answer = QUESTIONS[question]
    found = [place for place in places(SOURCE, "email") if asked(place)]
    return [[p.word for p in found if bool(answer(p)) is which] for which in (True, False)]


def test_questions_about_python_have_the_right_answers():
    yes = lambda question: answers(question)[0]
    assert yes("in_docstring") == ["Reads", "lines", "Slowly"] and yes("in_comment") == ["one", "file"]
    assert answers("docstring_not_string") == [["Reads", "lines", "Slowly"], ["no", "line"]]
    assert yes("sentence_ends_next") == ["lines", "Slowly"]
    assert yes("on_import_line") == ["import", "os", ",", "sys"]
    assert yes("on_def_line")[:4] == ["def", "lines", "(", "self"] and ":" in yes("on_def_line")
    assert yes("on_return_line") == ["return", "total", ".", "count", "(", "size", ")"]
    assert yes("on_raise_line") == ["raise", "ValueError", "(", ")"]
    assert answers("in_class")[1] == ["import", "os", ",", "sys", "class", "Reader", "(", "Base", ")", ":"]
    assert yes("in_for") == [*"if line [ len ( sys . argv ) ] :".split()]
    assert yes("in_if") == ["raise", "ValueError", "(", ")"] == yes("indented_3_levels")[-4:]
    assert yes("in_brackets") == "Base self path size path len sys argv size".split()
    assert yes("in_two_brackets") == ["sys", "argv"] and yes("in_square_brackets") == ["len"]
    assert yes("is_attribute") == ["argv", "count"] and yes("is_keyword_argument") == ["size"]
    assert yes("is_called_next") == ["Reader", "lines", "open", "len", "ValueError", "count"]
    assert yes("is_assigned_next") == ["total"]
    assert yes("was_named_before") == ["lines", "path", "line", "total", "size"]
    assert yes("block_begins_next") == [")", ")", ")", "]"]
    assert yes("line_ends_next") == ["sys", ":", ":", ":", ":", ")", "size", ")"]


def test_texts_end_at_their_place_and_halves_are_of_different_stretches():
    source = SOURCE * 40
    found = [*places(source, "json")]
    for place in found[::50]:
        assert place.text.endswith(place.word) and len(place.text) >= 120 and place.text in source
    assert {place.train for place in found} == {True, False}


def test_the_tasks_about_python_are_balanced_and_share_no_text_between_halves(monkeypatch):
    monkeypatch.setattr(python_text, "PACKAGES", ("json", "unittest"))
    made = python_text.python_tasks()
    assert len(made) > 20
    for task in made:
        for half in (task.train, ~task.train):
            assert task.labels[half].mean() == 0.5 and half.sum() >= 50
        assert not {*np.array(task.texts)[task.train]} & {*np.array(task.texts)[~task.train]}, task.name
