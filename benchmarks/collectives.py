"""What a step moves between devices, read off its compiled form on simulated meshes, against what the design allows.

    python -m benchmarks.collectives [--n 65536] [--write docs/scaling.md]

Bytes are of what one device has after each collective. Over `latent` they are counted for a token of that device: the
design is 4 (k S + d) forward, the candidates of S shards and the reconstruction; nothing moves there in the gradient.
Over `data` move the gradients, whatever the number of tokens: 4 n / S (2 d + 1), and one count for each latent.
AuxK's part is left out: it moves only while latents are dead.
"""

import argparse
import re
from pathlib import Path

import jax

from benchmarks import common
from benchmarks.jaxsae_step import configuration, make_case
from benchmarks.table import markdown, replaced
from jaxsae.planning.hlo import collectives
from jaxsae.sae.config import SAEConfig

MESHES = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4), (8, 1), (4, 2), (2, 4), (1, 8)]


def row(mesh: tuple[int, int], shape: common.Shape) -> list[str]:
    """A line of the table: what a step of `shape` moves on `mesh`."""
    sae = SAEConfig(n=shape.n, k=shape.k, normalise="none")
    case = make_case(sae, configuration(shape.B, auxk_coef=0.0, k_aux=shape.k_aux), shape.d, mesh_shape=mesh)
    text = case.compiled.as_text()
    moved = collectives(_without_auxk(text), mesh)
    total = lambda axis: sum(part.bytes for part in moved if part.axis == axis)
    data, shards = mesh
    tokens, latents = shape.B // data, shape.n // shards
    forward = 4 * (shape.k * shards + shape.d) if shards > 1 else 0
    gradients = 4 * latents * (2 * shape.d + 2) if data > 1 else 0
    peak = case.compiled.memory_analysis().temp_size_in_bytes
    return [
        f"{data} × {shards}",
        f"{total('latent') / tokens:,.0f}",
        f"{forward:,.0f}",
        f"{total('data') / 1e6:,.1f}",
        f"{gradients / 1e6:,.1f}",
        f"{peak / 1e6:,.0f}",
    ]


def _without_auxk(text: str) -> str:
    """The program without the branch that is taken while latents are dead, and what only that one calls."""
    parts = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ (?:\([^\n]*\) -> [^\n]*)?\{\n)", text)
    named = {}
    for part in parts:
        if match := re.match(r"(ENTRY )?%?([\w.\-]+) ", part):
            named[match[2]] = part
    entry = next(name for name, part in named.items() if part.startswith("ENTRY"))
    skipped = {
        branch.strip().lstrip("%")
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", named[entry])
        for branch in branches.split(",")[1:]
    }
    reached, todo = set(), [entry]
    while todo:
        name = todo.pop()
        if name in reached or name in skipped or name not in named:
            continue
        reached.add(name)
        todo += re.findall(r"%([\w.\-]+)", named[name])
    return "\n".join(named[name] for name in reached)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=65536, help="latents (%(default)s)")
    parser.add_argument("--write", type=Path, help="file whose table is replaced; default: it is printed")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    shape = common.Shape(d=128, n=args.n, k=32, B=1024, k_aux=64)
    head = ["data × latent", "latent, B/token", "design", "data, MB/step", "design", "temporaries, MB"]
    table = markdown(head, [row(mesh, shape) for mesh in MESHES])
    table = f"{common.describe(shape)}\n\n{table}"
    if args.write is None:
        print(table)
    else:
        args.write.write_text(replaced(args.write.read_text(), table))


if __name__ == "__main__":
    main()
