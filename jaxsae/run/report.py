"""The page of one evaluation, and the page that puts several side by side: tables, figures, and what they mean.

A page is made of what eval.json says and of the figures beside it, so it can be made again from them at any time.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxsae import evals
from jaxsae.errors import BadInput
from jaxsae.io import atomic
from jaxsae.run import folder as folders
from jaxsae.run.folder import EVAL
from jaxsae.run.page import definitions, details, number, page, paragraph, picture, table, text

# The folder of figures and of the page, beside eval.json.
FIGURES, PAGE = "eval", "report.html"
# Evaluations that failed: {name: reason} in eval.json.
FAILED = "failed"

# More numbers of parts than these are folded away.
NESTED = 12

COLUMNS = {"": "exported", "raw_": "without EMA", "no_pos0_": "no position 0", "raw_no_pos0_": "neither"}
# What eval.json says of the evaluation itself.
FACTS = {
    "step": "step",
    "tokens": "tokens of training",
    "eval_text": "evaluated on",
    "eval_split": "part",
    "eval_tokens": "tokens of evaluation",
    "eval_context": "tokens of a context",
}


def write_report(results: dict, folder: Path, title: str):
    """FOLDER/eval/report.html of `results`, what FOLDER/eval.json holds."""
    parts = [_facts({title: results}), _contents([results])]
    parts += [_evaluation(name, {title: results}, {title: folder}) for name in _names([results])]
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / FIGURES / PAGE, page(title, parts))


def compare(paths: list[Path], out: Path) -> Path:
    """One page that shows the evaluations of several folders side by side; returns its path.

    Raises BadInput for a folder that was not evaluated.
    """
    for path in paths:
        if not (path / EVAL).is_file():
            raise BadInput(f"{path} has no {EVAL}: evaluate it first, `jaxsae eval {path}`")
    # Names as short as they can be and still differ.
    titles = [path.name for path in paths]
    titles = [str(path) if titles.count(path.name) > 1 else path.name for path in paths]
    if len(set(titles)) < len(paths):
        raise BadInput(f"{', '.join(titles)}: give each folder once")
    results = dict(zip(titles, (folders.read(path / EVAL) for path in paths)))
    parts = [_facts(results), _contents(list(results.values()))]
    parts += [_evaluation(name, results, dict(zip(titles, paths))) for name in _names(list(results.values()))]
    out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(out / "compare.html", page(" · ".join(titles), parts))
    return out / "compare.html"


def _names(results: list[dict]) -> list[str]:
    """The evaluations that any of the results has, or that failed there."""
    has = lambda name, one: "nmse" in one if name == "standard" else isinstance(one.get(name), dict)
    return [name for name in evals.EVALUATIONS if any(has(name, one) or name in one.get(FAILED, {}) for one in results)]


def _contents(results: list[dict]) -> str:
    links = [f'<a href="#{name}">{text(name)}</a>' for name in _names(results)]
    return f"<nav>{' '.join(links)}</nav>"


def _facts(results: Mapping[str, dict]) -> str:
    shown = lambda value: " ".join(value) if isinstance(value, list) else number(value)
    rows = [
        (label, *(shown(one.get(name)) for one in results.values()))
        for name, label in FACTS.items()
        if any(one.get(name) is not None for one in results.values())
    ]
    return table(("", *results) if len(results) > 1 else ("", ""), rows)


def _evaluation(name: str, results: Mapping[str, dict], where: Mapping[str, Path]) -> str:
    """One section: what was measured and how, its numbers, its figures, what the numbers mean."""
    evaluation = evals.EVALUATIONS[name]
    parts = [f'<h2 id="{name}">{text(name)}</h2>', paragraph(" ".join(evaluation.protocol.split()), "soft")]
    for title, one in results.items():
        if name in one.get(FAILED, {}):
            whose = f"{title}: " if len(results) > 1 else ""
            parts.append(paragraph(f"{whose}failed: {one[FAILED][name]}", "failed"))
    columns = _columns(name, results)
    names = list(dict.fromkeys(key for values in columns.values() for key in values))
    rows = [(key, *(_cell(values, key) for values in columns.values())) for key in names if not key.endswith("_se")]
    head = ("", *columns) if len(columns) > 1 else ("", "value")
    nested = [row for row in rows if "." in row[0]]
    if len(nested) > NESTED:
        rows = [row for row in rows if "." not in row[0]]
    parts += [table(head, rows)] if rows else []
    parts += [details(f"{len(nested)} more numbers", table(head, nested), open=False)] if len(nested) > NESTED else []
    for title, folder in where.items():
        if (path := folder / FIGURES / f"{name}.png").is_file():
            parts.append(picture(path, f"{name}, {title}" if len(where) > 1 else ""))
    known = {part for key in names for part in key.split(".")}
    if meanings := {key: said for key, said in evaluation.meanings.items() if key in known}:
        said = {key: " ".join(words.split()) for key, words in meanings.items()}
        parts.append(details("What these numbers mean", definitions(said)))
    return "\n".join(parts)


def _columns(name: str, results: Mapping[str, dict]) -> dict[str, dict]:
    """{title of a column: {metric: number}} of one evaluation."""
    if name != "standard":
        return {title: dict(_flat(one[name])) for title, one in results.items() if isinstance(one.get(name), dict)}
    if len(results) > 1:
        return {title: _standard(one, "") for title, one in results.items()}
    (one,) = results.values()
    return {title: values for prefix, title in COLUMNS.items() if (values := _standard(one, prefix))}


def _standard(results: dict, prefix: str) -> dict:
    """The numbers of the standard metrics with a prefix."""
    names = [name for name in evals.EVALUATIONS["standard"].meanings if f"{prefix}{name}" in results]
    values = {name: results[f"{prefix}{name}"] for name in names}
    errors = {f"{name}_se": results[f"{prefix}{name}_se"] for name in names if f"{prefix}{name}_se" in results}
    return values | errors


def _flat(values: dict, path: str = ""):
    """(dotted name, number) of nested results; what is no number is left to eval.json."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        elif value is None or isinstance(value, int | float):
            yield f"{path}{name}", value


def _cell(values: dict, name: str) -> str:
    error = values.get(f"{name}_se")
    return number(values.get(name)) + ("" if error is None else f" ± {error:.2g}")
