"""What an evaluation leaves in a folder: eval.json, and in eval/ figures, lists, the page and SAEBench's file."""

import json
from collections.abc import Sequence
from pathlib import Path

from jaxsae import evals
from jaxsae.io import atomic
from jaxsae.run import folder as folders
from jaxsae.run import saebench
from jaxsae.run.folder import EVAL
from jaxsae.run.report import FAILED, FIGURES, write_report

# Two evaluations of one folder that agree in these measure the same thing, and their results go into one file.
SAME_EVALUATION = ("step", "data_fingerprint", "eval_split", "eval_tokens", "eval_context")


def save(results: dict, lists: dict[str, list], names: Sequence[str], folder: Path, out: Path) -> dict:
    """Write the `results` of the evaluations `names` of what is in `folder` into `out`; returns what eval.json says.

    What eval.json says of the same weights on the same tokens stays in it. `lists` {NAME.KEY: list} get a file each.
    """
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    for name, items in lists.items():
        # One item in a line.
        lines = ",\n".join(map(json.dumps, items))
        atomic.write_text(out / FIGURES / f"{name}.json", f"[\n{lines}\n]\n")
    # Another folder may hold the results of another autoencoder.
    before = folders.read(out / EVAL) if out == folder else {}
    before.pop(FAILED, None)
    same = all(before.get(fact) == results[fact] for fact in SAME_EVALUATION)
    results = before | results if same else results
    folders.write(out / EVAL, results)
    for name in names:
        if name in results.get(FAILED, {}):
            continue
        if draw := evals.EVALUATIONS[name].figure:
            draw(results if name == "standard" else results[name], out / FIGURES / f"{name}.png")
    if "nmse" in results:
        saebench.write(results, out / FIGURES / "saebench_core.json")
    write_report(results, out, f"{folder.name}: evaluation")
    return results
