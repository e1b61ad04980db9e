"""What other libraries' own code computes from files that jaxsae writes, and from files that jaxsae reads.

    python -m tests.interop.with_their_own_code [written|read|handed_over ...] [--into docs/*.md] [--torch-index URL]

Each library runs in an environment of its own (SAELens 6.54.12, sparsify 1.3.3, dictionary-learning 0.1.0,
circuit-tracer 0.5.0 and delphi 0.1.3 from PyPI, with PyTorch), made once in $JAXSAE_CACHE. Prints tables, or puts them
into the pages that have room for them: the largest difference in latents and reconstructions, relative to the largest
value; and what delphi reads of the activations that it is handed. It needs PyPI and some gigabytes, so it is not in CI.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks.peers import environments
from jaxsae import interop
from jaxsae.errors import BadInput
from jaxsae.interop.interface import Given
from tests.interop import delphi, foreign_files
from tests.interop.families import PAIR, activations, everything
from tests.interop.peers import difference, outputs
from tests.interop.table import put

WORKER = Path(__file__).parent / "their_own/worker.py"
MODULE = Path(interop.__file__).parents[1] / "torch_module.py"
# The library that reads each written format, by the function of the worker and by its environment.
READERS = {
    "sae_lens": ("sae_lens", "saelens"),
    "sparsify": ("sparsify", "sparsify"),
    "dictionary_learning": ("dictionary_learning", "dictionary-learning"),
    "gemma_scope": ("sae_lens_loader", "saelens"),
    "circuit_tracer": ("circuit_tracer", "circuit-tracer"),
    # jaxsae's own module for torch's tools.
    "jaxsae": ("torch_module", "saelens"),
}


def run(environment: str, root: Path, torch_index: str | None):
    """Have the library compute what it does from all files under `root`."""
    python = environments.python(environment, environments.default_cache(), torch_index)
    subprocess.run([python, WORKER, root], check=True, stdout=sys.stderr)


def shown(ours, folder: Path) -> str:
    if not (folder / "theirs.npz").exists():
        return "refused"
    theirs = np.load(folder / "theirs.npz")
    flips = int(((ours[0] != 0) != (theirs["acts"] != 0)).sum())
    numbers = f"{difference(ours[0], theirs['acts']):.0e}, {difference(ours[1], theirs['recon']):.0e}"
    return numbers + (f", {flips} latents differ" if flips else "")


def written(torch_index: str | None) -> list[str]:
    """The table of what jaxsae writes."""
    cells, x = {}, activations()
    for to, (library, environment) in READERS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            np.save(root / "x.npy", x)
            ours = {}
            for number, (name, (sae, about)) in enumerate(everything().items()):
                try:
                    interop.write(sae, PAIR if to == "circuit_tracer" else about, root / str(number), to)
                except BadInput:
                    cells[name, to] = "refused"
                    continue
                # Latents are those of the file: where rows had to be scaled to norm 1, so are they.
                ours[name] = root / str(number), outputs(jax.tree.map(jax.numpy.asarray, sae), x)
                job = {"library": library, "file": str(MODULE)} | (foreign_files.GEMMA if to == "gemma_scope" else {})
                (root / str(number) / "job.json").write_text(json.dumps(job))
            run(environment, root, torch_index)
            cells |= {(name, to): shown(own, at) for name, (at, own) in ours.items()}
    lines = [f"| | {' | '.join(READERS)} |", f"|---|{'---|' * len(READERS)}"]
    return lines + [f"| {name} | {' | '.join(cells[name, to] for to in READERS)} |" for name in everything()]


def read(torch_index: str | None) -> list[str]:
    """The table of what jaxsae reads and no fixture holds, beside SAELens's loaders for it."""
    x, lines = activations(), ["| files | SAELens's loader | latents, reconstructions |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        np.save(root / "x.npy", x)
        made = foreign_files.make_all(root)
        run("saelens", root, torch_index)
        for name, (path, given, job) in made.items():
            ours = outputs(interop.load(path, given=Given(**given)), x)
            lines.append(f"| {name} | {job.get('loader', 'load_from_disk')} | {shown(ours, root / name)} |")
    return lines


def handed_over(torch_index: str | None) -> list[str]:
    """The table of what delphi reads of the activations that jaxsae writes for it."""
    return delphi.table(environments.python("delphi", environments.default_cache(), torch_index))


TABLES = {function.__name__: function for function in (written, read, handed_over)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-index", help="index to install PyTorch from, as for its builds without CUDA")
    parser.add_argument("--into", nargs="+", type=Path, default=(), help="pages to put the tables into")
    parser.add_argument("tables", nargs="*", help=f"tables to make, of {', '.join(TABLES)}; default: all")
    typed = parser.parse_args()
    if unknown := [name for name in typed.tables if name not in TABLES]:
        parser.error(f"there is no table {unknown[0]}: allowed are {', '.join(TABLES)}")
    for name in typed.tables or TABLES:
        lines = TABLES[name](typed.torch_index)
        print("\n".join([*lines, ""]))
        for page in typed.into:
            if f"<!-- tests.interop.{name} -->" in (text := page.read_text()):
                page.write_text(put(text, f"tests.interop.{name}", lines))


if __name__ == "__main__":
    main()
